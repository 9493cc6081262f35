--- What differs between Neovim 0.10, 0.11 and 0.12 in talking to a server, and the change between the positions of the
--- protocol and those of Neovim.
local M = {}

local methods = vim.fn.has('nvim-0.11') == 1

--- The running client, the newest if there are several.
function M.client(buf)
  local clients = vim.lsp.get_clients({ name = 'fimls', bufnr = buf })
  local client = clients[#clients]
  local stopped = client and (methods and client:is_stopped() or not methods and client.is_stopped())
  return not stopped and client or nil
end

--- callback(error, result), on the main loop. Returns the request's id, or nil when it could not be sent.
function M.request(client, method, params, callback, buf)
  local function answer(err, result)
    callback(err, result)
  end
  local sent, id
  if methods then
    sent, id = client:request(method, params, answer, buf)
  else
    sent, id = client.request(method, params, answer, buf)
  end
  return sent and id or nil
end

--- The result; nil after an error, or when it takes longer.
function M.request_and_wait(client, method, params, milliseconds)
  local answer
  if methods then
    answer = client:request_sync(method, params, milliseconds)
  else
    answer = client.request_sync(method, params, milliseconds, 0)
  end
  return answer and answer.result
end

function M.notify(client, method, params)
  if methods then
    client:notify(method, params)
  else
    client.notify(method, params)
  end
end

function M.cancel(client, id)
  if methods then
    client:cancel_request(id)
  else
    client.cancel_request(id)
  end
end

function M.stop(client)
  if methods then
    client:stop()
  else
    client.stop()
  end
end

--- For a server that does not answer to `stop`: 0.11 would not force one that was asked to stop before.
function M.terminate(client)
  client.rpc.terminate()
end

--- The version of a buffer's text that the servers know. Writing the file does not change it, as `changedtick` does.
function M.version(buf)
  return vim.lsp.util.buf_versions[buf] or vim.api.nvim_buf_get_changedtick(buf)
end

--- Runs a command of the server; an answer is not waited for, and a server that does not know it is no trouble.
function M.execute(client, command, buf)
  local params = { command = command.command, arguments = command.arguments }
  M.request(client, 'workspace/executeCommand', params, function() end, buf)
end

--- The length of text in units of the encoding.
function M.units(text, encoding)
  if encoding == 'utf-8' then
    return #text
  end
  local utf32, utf16 = vim.str_utfindex(text)
  return encoding == 'utf-32' and utf32 or utf16
end

local function line_of(buf, row)
  return vim.api.nvim_buf_get_lines(buf, row, row + 1, false)[1]
end

--- Row and byte column (both from 0) -> position.
function M.position(buf, row, col, encoding)
  local line = line_of(buf, row)
  return { line = row, character = line and M.units(line:sub(1, col), encoding) or 0 }
end

--- Position -> row and byte column. What lies beyond the end of a line or of the buffer is its end.
function M.place(buf, position, encoding)
  local last = vim.api.nvim_buf_line_count(buf) - 1
  local row = math.min(position.line, last)
  local line = line_of(buf, row) or ''
  if position.line > last or position.character >= M.units(line, encoding) then
    return row, #line
  end
  if encoding == 'utf-8' then
    return row, position.character
  end
  return row, vim.str_byteindex(line, position.character, encoding == 'utf-16')
end

return M
