--- Drawing: a suggestion's text as virtual text at the cursor.
---
--- One renderer for Neovim 0.10 to 0.12. 0.12 has its own vim.lsp.inline_completion, but it cannot give what is promised
--- here: it draws an answer without asking whether the text it was made for is still there (text that was typed
--- over stays under a wrong suggestion until the next answer), accepting while typing through writes the typed part
--- twice, superseded requests are not cancelled, there is no accepting by word or line and no explicit request.
--- It is therefore kept from drawing this server's answers too (see client.lua).
local M = {}

M.namespace = vim.api.nvim_create_namespace('fimls.ghost')

vim.api.nvim_set_hl(0, 'FimlsGhostText', { default = true, link = 'Comment' })
vim.api.nvim_set_hl(0, 'FimlsReplaced', { default = true, strikethrough = true })
vim.api.nvim_set_hl(0, 'FimlsHint', { default = true, link = 'NonText' })

local shown_in

function M.clear()
  if shown_in and vim.api.nvim_buf_is_valid(shown_in) then
    vim.api.nvim_buf_clear_namespace(shown_in, M.namespace, 0, -1)
  end
  shown_in = nil
end

--- Virtual text shows a tab as ^I: spaces up to the next tab stop stand in for it.
local function expand(text, column)
  local result = text:gsub('\r', '')
  while true do
    local tab = result:find('\t', 1, true)
    if not tab then
      return result
    end
    local before = result:sub(1, tab - 1)
    local at = column + vim.fn.strdisplaywidth(before, column)
    result = before .. (' '):rep(vim.fn.strdisplaywidth('\t', at)) .. result:sub(tab + 1)
  end
end

--- Cuts text into what is new and what stands in the replaced text already: `, two)` over `)` is `, two` before `)`.
--- Returns pairs {offset in replaced, new text}, or nil when the replaced text is not part of it.
local function around(text, replaced)
  -- An end that both have comes first: it is brackets that stand there already.
  if vim.endswith(text, replaced) then
    return { { 0, text:sub(1, #text - #replaced) } }
  end
  local pieces, from, offset = {}, 1, 0
  for _, character in ipairs(vim.fn.split(replaced, '\\zs')) do
    local at = text:find(character, from, true)
    if not at then
      return nil
    end
    if at > from then
      pieces[#pieces + 1] = { offset, text:sub(from, at - 1) }
    end
    from, offset = at + #character, offset + #character
  end
  pieces[#pieces + 1] = { #replaced, text:sub(from) }
  return pieces
end

--- Draws `text` at a place (from 0), in front of `tail`, the rest of that line. `replaced` is the start of the tail that
--- accepting would replace. `hint` stands behind everything.
function M.draw(buf, row, col, text, tail, replaced, hint, group)
  -- Clearing and setting in one go does not flicker: nothing is drawn in between.
  M.clear()
  shown_in = buf
  local line = vim.api.nvim_buf_get_lines(buf, row, row + 1, false)[1] or ''
  local column = vim.fn.strdisplaywidth(line:sub(1, col))
  local function mark(at, options)
    -- Combined with what is under it, text between two matching brackets would shine as they do.
    options.hl_mode = 'replace'
    vim.api.nvim_buf_set_extmark(buf, M.namespace, row, at, options)
  end

  local lines = vim.split(text, '\n', { plain = true })
  if #lines > 1 then
    local first = { { expand(lines[1], column), group } }
    local below = {}
    for i = 2, #lines do
      below[i - 1] = { { expand(lines[i], 0), group } }
    end
    local last = below[#below]
    local position = 'inline'
    if tail:find('%S') then
      -- The tail will stand behind the last line: it is shown there, and covered where it is now.
      local missing = vim.fn.strdisplaywidth(tail, column) - vim.fn.strdisplaywidth(first[1][1], column)
      first[2] = { (' '):rep(math.max(missing, 0)), 'Normal' }
      last[2] = { expand(tail:sub(#replaced + 1), vim.fn.strdisplaywidth(last[1][1])), 'Normal' }
      position = 'overlay'
    end
    last[#last + 1] = hint and { hint, 'FimlsHint' }
    mark(col, { virt_text = first, virt_text_pos = position, virt_lines = below })
    return
  end

  local pieces = around(text, replaced)
  if not pieces then
    mark(col, { end_col = col + #replaced, hl_group = 'FimlsReplaced' })
    pieces = { { 0, text } }
  end
  for i, piece in ipairs(pieces) do
    local at = column + vim.fn.strdisplaywidth(tail:sub(1, piece[1]), column)
    local virtual = { { expand(piece[2], at), group } }
    virtual[2] = i == #pieces and hint and { hint, 'FimlsHint' } or nil
    mark(col + piece[1], { virt_text = virtual, virt_text_pos = 'inline' })
  end
end

return M
