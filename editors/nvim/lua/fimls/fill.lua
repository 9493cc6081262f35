--- Fill-in-the-middle edits: asked for, shown as a diff, and applied only when the user says so.
local lsp = require('fimls.lsp')
local page = require('fimls.page')
local preview = require('fimls.preview')

local M = {}

local progress = vim.api.nvim_create_namespace('fimls.fill')
local running -- client, id, buf, restore

local function say(message, level)
  vim.notify('fimls: ' .. message, level or vim.log.levels.INFO)
end

function M.running()
  return running ~= nil
end

local function finish()
  local job = running
  running = nil
  if job then
    if vim.api.nvim_buf_is_valid(job.buf) then
      vim.api.nvim_buf_clear_namespace(job.buf, progress, 0, -1)
      job.restore()
    end
    vim.cmd('redrawstatus!')
  end
end

--- Ends the work that goes on. Nothing has been changed by then.
function M.cancel()
  if not running then
    return say('there is nothing to cancel')
  end
  lsp.cancel(running.client, running.id)
  finish()
  say('cancelled')
end

--- A client has ended: an answer of it will not come.
function M.lost(id)
  if running and running.client.id == id then
    finish()
    say('the server ended; nothing was filled in')
  end
end

--- CTRL-C cancels in normal mode, in that buffer, for that time. Escape is left alone: many press it from habit.
local function map_cancel(buf)
  local found = vim.api.nvim_buf_call(buf, function()
    return vim.fn.maparg('<C-c>', 'n', false, true)
  end)
  vim.keymap.set('n', '<C-c>', M.cancel, { buffer = buf, nowait = true, desc = 'fimls: cancel' })
  return function()
    pcall(vim.keymap.del, 'n', '<C-c>', { buffer = buf })
    if found.buffer == 1 then
      vim.api.nvim_buf_call(buf, function()
        vim.fn.mapset('n', false, found)
      end)
    end
  end
end

--- The text edits for a buffer in a workspace edit, without annotations: Neovim 0.12 would ask for consent once more.
local function edits_for(edit, uri)
  local edits = {}
  local function add(list)
    for _, item in ipairs(list) do
      edits[#edits + 1] = { range = item.range, newText = item.newText }
    end
  end
  for _, change in ipairs(edit.documentChanges or {}) do
    if change.textDocument and change.textDocument.uri == uri then
      add(change.edits)
    end
  end
  for changed, list in pairs(edit.changes or {}) do
    if changed == uri then
      add(list)
    end
  end
  return edits
end

local function answered(buf, uri, version, encoding, result)
  local edits = type(result) == 'table' and edits_for(result.edit or {}, uri) or {}
  if #edits == 0 then
    return say('there was no answer to fill in')
  end
  local function changed()
    return not vim.api.nvim_buf_is_valid(buf) or lsp.version(buf) ~= version
  end
  local stale = 'the text has changed meanwhile; nothing was filled in'
  if changed() then
    return say(stale)
  end
  local function apply()
    if changed() then
      return say(stale)
    end
    -- One call, one undo step.
    vim.lsp.util.apply_text_edits(edits, buf, encoding)
  end
  local ready = 'an edit is ready; it is shown in its buffer in normal mode'
  page.when_back('fill', buf, ready, function()
    if changed() then
      return say(stale)
    end
    preview.open(buf, edits, encoding, result.label or 'Fill in', apply, say)
  end)
end

--- Asks for an edit: kind is "selection", "body" or "docstring", range one of the protocol, version that of the text
--- which it is a range of, if it is not the present one.
function M.request(buf, kind, range, version)
  local client = lsp.client(buf)
  if not client or not client.initialized then
    return say('no server runs for this buffer: ' .. require('fimls.client').status().message)
  elseif not vim.bo[buf].modifiable then
    return say('this buffer cannot be changed')
  elseif running then
    return say('one edit is being filled in already; `:Fimls cancel` ends it')
  end
  local uri, now = vim.uri_from_bufnr(buf), lsp.version(buf)
  local job = { client = client, buf = buf, restore = map_cancel(buf) }
  running = job
  job.id = lsp.request(client, 'fimls/fill', {
    textDocument = { uri = uri },
    range = range,
    kind = kind,
    version = version,
  }, function(err, result)
    if running ~= job then
      return -- cancelled
    end
    finish()
    if err then
      local unknown = err.code == -32601
      say(unknown and 'this server cannot fill in; a newer fimls can' or err.message or 'no answer')
      return
    end
    answered(buf, uri, now, client.offset_encoding, result)
  end, buf)
  if not job.id then
    finish()
    return say('the server does not answer')
  end
  local note = ' fimls fills in … (CTRL-C or :Fimls cancel ends it)'
  local row = math.min(range.start.line, vim.api.nvim_buf_line_count(buf) - 1)
  vim.api.nvim_buf_set_extmark(buf, progress, row, 0, { virt_text = { { note, 'FimlsHint' } }, virt_text_pos = 'eol' })
  vim.cmd('redrawstatus!')
end

--- The range of whole lines (from 1), the last line's end included.
local function lines_range(first, last)
  return { start = { line = first - 1, character = 0 }, ['end'] = { line = last, character = 0 } }
end

--- The last visual selection, by character if that is how it was selected.
local function visual_range(buf, encoding)
  local from, to = vim.api.nvim_buf_get_mark(buf, '<'), vim.api.nvim_buf_get_mark(buf, '>')
  if vim.fn.visualmode() ~= 'v' then
    return lines_range(from[1], to[1])
  end
  local line = vim.api.nvim_buf_get_lines(buf, to[1] - 1, to[1], false)[1] or ''
  local finish_at
  if vim.o.selection == 'exclusive' then
    finish_at = lsp.position(buf, to[1] - 1, to[2], encoding)
  elseif to[2] >= #line then
    -- `v$` takes the end of the line too.
    finish_at = { line = to[1], character = 0 }
  else
    -- The mark is on the last character; the range ends behind it, and behind what combines with it.
    local character = vim.fn.strpart(line, to[2], 1, true)
    finish_at = lsp.position(buf, to[1] - 1, to[2] + #character, encoding)
  end
  return { start = lsp.position(buf, from[1] - 1, from[2], encoding), ['end'] = finish_at }
end

--- The text from one mark up to the other.
local function marks_range(buf, names, encoding)
  local places = {}
  for i, name in ipairs(names) do
    local ok, mark = pcall(vim.api.nvim_buf_get_mark, buf, name)
    if #name ~= 1 or not ok or mark[1] == 0 then
      return nil, ("the mark '%s is not set in this buffer"):format(name)
    end
    local length = #(vim.api.nvim_buf_get_lines(buf, mark[1] - 1, mark[1], false)[1] or '')
    places[i] = { mark[1] - 1, math.min(mark[2], length) }
  end
  local from, to = places[1], places[2]
  if from[1] > to[1] or (from[1] == to[1] and from[2] > to[2]) then
    from, to = to, from
  end
  return {
    start = lsp.position(buf, from[1], from[2], encoding),
    ['end'] = lsp.position(buf, to[1], to[2], encoding),
  }
end

--- `:Fimls fill|body|docstring`, with the command's range and arguments.
function M.command(kind, command, arguments)
  local buf = vim.api.nvim_get_current_buf()
  local client = lsp.client(buf)
  local encoding = client and client.offset_encoding or 'utf-16'
  local range, problem
  if kind == 'fill' and #arguments > 0 then
    if #arguments ~= 2 then
      return say('`:Fimls fill a b` takes two marks')
    end
    range, problem = marks_range(buf, arguments, encoding)
    if not range then
      return say(problem)
    end
  elseif kind == 'fill' and command.range > 0 then
    local visual = command.line1 == vim.fn.line("'<") and command.line2 == vim.fn.line("'>")
    range = visual and visual_range(buf, encoding) or lines_range(command.line1, command.line2)
  else
    local at = vim.api.nvim_win_get_cursor(0)
    local position = lsp.position(buf, at[1] - 1, at[2], encoding)
    range = { start = position, ['end'] = position }
  end
  M.request(buf, kind == 'fill' and 'selection' or kind, range)
end

--- The command of a code action, which the server would run without a preview.
function M.from_action(argument, context)
  if type(argument) ~= 'table' or type(argument.range) ~= 'table' then
    return say('the code action names no range')
  end
  local uri = (argument.textDocument or {}).uri
  local buf = uri and vim.uri_to_bufnr(uri) or (context or {}).bufnr or vim.api.nvim_get_current_buf()
  M.request(buf, argument.kind or 'selection', argument.range, argument.version)
end

return M
