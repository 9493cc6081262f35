--- Suggestions: when to ask, which answer still fits the text, and what the user does with it. Whether there is
--- anything worth showing is for the server to say.
local config = require('fimls.config')
local ghost = require('fimls.ghost')
local lsp = require('fimls.lsp')

local M = { auto = true }

local anchors = vim.api.nvim_create_namespace('fimls.anchors')
local AUTOMATIC, INVOKED = 2, 1

-- What is on the screen: buf, client, items, index, invoked, places (of each item: its anchor, an extmark at the start of
-- its range, and replaced, the text behind the cursor that the range covers), tail (the rest of the line there).
local current
-- The request that is waited for: client, id, and the place and text it is about.
local waiting
local timer = assert(vim.uv.new_timer())

local function cancel_request()
  timer:stop()
  if waiting then
    if waiting.id then
      lsp.cancel(waiting.client, waiting.id)
    end
    waiting = nil
  end
end

local function forget()
  ghost.clear()
  if current then
    pcall(vim.api.nvim_buf_clear_namespace, current.buf, anchors, 0, -1)
    current = nil
  end
end

--- Takes everything off the screen and asks for nothing more until the text changes.
function M.dismiss()
  cancel_request()
  forget()
end

function M.visible()
  return current ~= nil
end

--- Whether an entry of the completion menu is chosen: then the menu has the word.
local function entry_selected()
  if vim.fn.pumvisible() == 1 then
    return vim.fn.complete_info({ 'selected' }).selected >= 0
  end
  local cmp = package.loaded['cmp']
  return type(cmp) == 'table' and cmp.get_active_entry ~= nil and cmp.get_active_entry() ~= nil
end

--- Whether a completion menu is open, the built-in one or a known plugin's.
function M.menu_open()
  if vim.fn.pumvisible() == 1 then
    return true
  end
  local cmp, blink = package.loaded['cmp'], package.loaded['blink.cmp']
  return type(cmp) == 'table' and cmp.visible ~= nil and cmp.visible()
    or type(blink) == 'table' and blink.is_menu_visible ~= nil and blink.is_menu_visible()
    or false
end

--- Why there are no suggestions in this buffer, or nil.
function M.refused(buf)
  local options, bo = config.options, vim.bo[buf]
  if bo.buftype ~= '' then
    return 'no file buffer'
  elseif vim.api.nvim_buf_get_name(buf) == '' then
    -- The protocol knows documents by their names: two without one would be the same document.
    return 'no file name yet'
  elseif not bo.modifiable or bo.readonly then
    return 'read-only'
  elseif vim.tbl_contains(options.disabled_filetypes, bo.filetype) then
    return ('off for the file type %s'):format(bo.filetype)
  elseif options.filetypes and not vim.tbl_contains(options.filetypes, bo.filetype) then
    return ('not one of the file types %s'):format(table.concat(options.filetypes, ', '))
  end
end

local function client_here(buf)
  -- Insert mode only: in Replace mode text is written over, and with several cursors (vim-visual-multi) it comes twice.
  if vim.api.nvim_get_mode().mode:sub(1, 1) ~= 'i' or vim.b[buf].visual_multi or M.refused(buf) then
    return nil
  end
  local client = lsp.client(buf)
  return client and client.server_capabilities and client.initialized and client or nil
end

local function cursor()
  local at = vim.api.nvim_win_get_cursor(0)
  return at[1] - 1, at[2]
end

local function tail_at(buf, row, col)
  return (vim.api.nvim_buf_get_lines(buf, row, row + 1, false)[1] or ''):sub(col + 1)
end

--- The text between two places; nil if there are no such places.
local function between(buf, row, col, end_row, end_col)
  local ok, lines = pcall(vim.api.nvim_buf_get_text, buf, row, col, end_row, end_col, {})
  return ok and table.concat(lines, '\n') or nil
end

local function text_of(item)
  return (item.insertText:gsub('\r\n', '\n'))
end

--- What of the current item stands before the cursor already, and what does not yet. nil: the item does not fit the
--- text any more.
local function parts()
  local buf = vim.api.nvim_get_current_buf()
  if not current or current.buf ~= buf then
    return nil
  end
  local row, col = cursor()
  if tail_at(buf, row, col) ~= current.tail then
    return nil
  end
  local start = vim.api.nvim_buf_get_extmark_by_id(buf, anchors, current.places[current.index].anchor, {})
  local typed = start[1] and between(buf, start[1], start[2], row, col)
  local text = text_of(current.items[current.index])
  if not typed or #typed >= #text or not vim.startswith(text, typed) then
    return nil
  end
  return typed, text:sub(#typed + 1), row, col
end

--- What is said behind a suggestion: which of several it is, and whose text it repeats.
local function hint()
  local words = {}
  if current.invoked and #current.items > 1 then
    words[1] = ('(%d/%d)'):format(current.index, #current.items)
  end
  local command = current.items[current.index].command
  local notice = type(command) == 'table' and (command.arguments or {})[2]
  if type(notice) == 'string' then
    words[#words + 1] = ('(%s)'):format(notice:gsub('%s+', ' '))
  end
  return words[1] and '  ' .. table.concat(words, ' ') or nil
end

--- Draws what is left of the current item, or takes it away. Returns whether it is on the screen.
local function refresh()
  local client = current and client_here(vim.api.nvim_get_current_buf())
  if not client or client.id ~= current.client.id or entry_selected() then
    forget()
    return false
  end
  local typed, rest, row, col = parts()
  if not typed then
    forget()
    return false
  end
  local replaced = current.places[current.index].replaced:match('^[^\n]*')
  ghost.draw(current.buf, row, col, rest, current.tail, replaced, hint(), config.options.highlight)
  local item = current.items[current.index]
  if not current.told[item] then
    current.told[item] = true
    lsp.notify(client, 'textDocument/didShowCompletion', { item = item })
  end
  return true
end

--- Where an item begins, and the text behind the cursor that it replaces; nil for a range that is not around the cursor.
local function place_of(client, buf, item)
  local row, col = cursor()
  if not item.range then
    return row, col, ''
  end
  local start_row, start_col = lsp.place(buf, item.range.start, client.offset_encoding)
  local replaced = between(buf, row, col, lsp.place(buf, item.range['end'], client.offset_encoding))
  if replaced and between(buf, start_row, start_col, row, col) then
    return start_row, start_col, replaced
  end
end

--- Takes an answer in, if it is one for what stands on the screen.
local function take(client, buf, items, invoked, index)
  forget()
  local usable, places, chosen = {}, {}, 1
  for i, item in ipairs(items) do
    local start_row, start_col, replaced = place_of(client, buf, item)
    if type(item.insertText) == 'string' and item.insertText ~= '' and start_row then
      usable[#usable + 1] = item
      local anchor = vim.api.nvim_buf_set_extmark(buf, anchors, start_row, start_col, { right_gravity = false })
      places[#places + 1] = { anchor = anchor, replaced = replaced }
      chosen = i == index and #usable or chosen
    end
  end
  if #usable == 0 then
    return
  end
  local row, col = cursor()
  current = {
    buf = buf,
    client = client,
    items = usable,
    index = chosen,
    invoked = invoked,
    places = places,
    tail = tail_at(buf, row, col),
    told = {},
  }
  refresh()
end

--- The text and the place that an answer is for, to be compared.
local function situation()
  local row, col = cursor()
  local buf = vim.api.nvim_get_current_buf()
  return ('%d %d %d %d'):format(buf, vim.api.nvim_buf_get_changedtick(buf), row, col)
end

--- Asks the server. `choose(items)` gives the index of the item to show.
local function ask(kind, choose)
  cancel_request()
  local buf = vim.api.nvim_get_current_buf()
  local client = client_here(buf)
  if not client or not require('fimls.client').suggests(client) or entry_selected() then
    return
  end
  local row, col = cursor()
  local params = {
    textDocument = { uri = vim.uri_from_bufnr(buf) },
    position = lsp.position(buf, row, col, client.offset_encoding),
    context = { triggerKind = kind },
  }
  local request = { client = client, situation = situation() }
  waiting = request
  request.id = lsp.request(client, 'textDocument/inlineCompletion', params, function(err, result)
    if waiting ~= request then
      return -- superseded
    end
    waiting = nil
    if err or type(result) ~= 'table' or situation() ~= request.situation then
      return
    elseif not client_here(buf) or entry_selected() then
      return
    end
    local items = result.items or result
    take(client, buf, items, kind == INVOKED, choose and choose(items))
  end, buf)
end

--- The text or the cursor changed: what still fits stays, else something new is asked for.
function M.changed()
  -- The events for keys that came in one go arrive after the keys, so also after a request that one of them made.
  local client = lsp.client(vim.api.nvim_get_current_buf())
  if waiting and client and waiting.client.id == client.id and waiting.situation == situation() then
    return
  end
  cancel_request()
  if refresh() or not M.auto then
    return
  end
  timer:start(
    config.options.debounce,
    0,
    vim.schedule_wrap(function()
      if M.auto and not current and not waiting then
        ask(AUTOMATIC)
      end
    end)
  )
end

--- Asks explicitly: several alternatives, however unsure, and also where automatic suggestions are off.
function M.trigger()
  ask(INVOKED)
end

--- The next (step 1) or previous (step -1) alternative. An automatic answer is one item: the others are asked for.
function M.cycle(step)
  local shown, rest = parts()
  if not shown then
    return M.trigger()
  end
  if current.invoked then
    -- What was typed since fits some of them only.
    for _ = 1, #current.items do
      current.index = (current.index + step - 1) % #current.items + 1
      if parts() then
        break
      end
    end
    refresh()
    return
  end
  ask(INVOKED, function(items)
    local seen
    for i, item in ipairs(items) do
      if text_of(item) == rest then
        seen = i
      end
    end
    if not seen then
      return step > 0 and 1 or #items
    end
    return (seen + step - 1) % #items + 1
  end)
end

--- How much of the text one step accepts, in bytes.
local function piece(text, unit)
  if unit == 'word' then
    local space = text:match('^%s*')
    local behind = text:sub(#space + 1)
    local word = behind:match('^[%w_\128-\255]+') or behind:match('^[^%w_%s\128-\255]+') or ''
    return #space + #word
  elseif unit == 'line' then
    return #text:match('^\n?[^\n]*')
  end
  return #text
end

--- Writes what is on the screen, or its next word or line, before the cursor. Call it through `keys`, which makes it
--- an undo step of its own.
function M.accept(unit)
  local typed, rest, row, col = parts()
  if not typed then
    return false
  end
  cancel_request()
  local client, buf, item = current.client, current.buf, current.items[current.index]
  local length = piece(rest, unit)
  local whole = length == #rest
  local end_row, end_col, replaced = row, col, current.places[current.index].replaced
  if whole and replaced ~= '' then
    local lines = vim.split(replaced, '\n', { plain = true })
    end_row = row + #lines - 1
    end_col = (#lines == 1 and col or 0) + #lines[#lines]
    if between(buf, row, col, end_row, end_col) ~= replaced then
      forget()
      return false -- what it was to take the place of is gone
    end
  end
  local lines = vim.split(rest:sub(1, length), '\n', { plain = true })
  vim.api.nvim_buf_set_text(buf, row, col, end_row, end_col, lines)
  vim.api.nvim_win_set_cursor(0, { row + #lines, (#lines == 1 and col or 0) + #lines[#lines] })
  if not whole then
    local accepted = typed .. rest:sub(1, length)
    if item.insertText:find('\r\n', 1, true) then
      accepted = accepted:gsub('\n', '\r\n')
    end
    local params = { item = item, acceptedLength = lsp.units(accepted, 'utf-16') }
    lsp.notify(client, 'textDocument/didPartiallyAcceptCompletion', params)
    refresh()
    return true
  end
  forget()
  if item.command then
    lsp.execute(client, item.command, buf)
  end
  return true
end

--- The keys that accept as one undo step of its own; nil when nothing is on the screen.
function M.keys(unit)
  return parts() and ('<C-g>u<Cmd>lua require("fimls.suggest").accept(%q)<CR><C-g>u'):format(unit) or nil
end

function M.attach_events(group)
  local function on(events, callback)
    vim.api.nvim_create_autocmd(events, { group = group, callback = callback })
  end
  on({ 'TextChangedI', 'TextChangedP', 'CursorMovedI' }, M.changed)
  on({ 'BufLeave', 'WinLeave' }, M.dismiss)
  on('ModeChanged', function()
    local was, is = vim.v.event.old_mode:sub(1, 1) == 'i', vim.v.event.new_mode:sub(1, 1) == 'i'
    if was and not is then
      M.dismiss()
    elseif is and not was then
      M.changed()
    end
  end)
  -- The menu moves to or from an entry without a change of text. Not at once: text is locked here.
  on({ 'CompleteChanged', 'CompleteDone' }, function()
    vim.schedule(function()
      if current then
        refresh()
      end
    end)
  end)
end

return M
