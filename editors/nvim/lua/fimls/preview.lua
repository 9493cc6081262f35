--- An edit shown as a diff in a floating window, to be applied or not.
local M = {}

local HASTE_MS = 200

--- The buffer's lines as they would be.
local function edited(buf, edits, encoding)
  local scratch = vim.api.nvim_create_buf(false, true)
  vim.api.nvim_buf_set_lines(scratch, 0, -1, true, vim.api.nvim_buf_get_lines(buf, 0, -1, true))
  vim.bo[scratch].fixeol, vim.bo[scratch].eol = vim.bo[buf].fixeol, vim.bo[buf].eol
  vim.lsp.util.apply_text_edits(vim.deepcopy(edits), scratch, encoding)
  local lines = vim.api.nvim_buf_get_lines(scratch, 0, -1, true)
  vim.api.nvim_buf_delete(scratch, { force = true })
  return lines
end

local function diff(old, new)
  -- Neovim 0.12 has moved it.
  local compare = vim.text and vim.text.diff or vim.diff
  return compare(table.concat(old, '\n') .. '\n', table.concat(new, '\n') .. '\n', { ctxlen = 3 })
end

--- Shows what the edits would do. `apply` is called if the user agrees.
function M.open(buf, edits, encoding, title, apply, say)
  local text = diff(vim.api.nvim_buf_get_lines(buf, 0, -1, true), edited(buf, edits, encoding))
  if text == '' then
    return say('the answer is what stands there already')
  end
  local lines = vim.split(text:gsub('\n$', ''), '\n', { plain = true })
  local shown = vim.api.nvim_create_buf(false, true)
  vim.api.nvim_buf_set_lines(shown, 0, -1, true, lines)
  vim.bo[shown].bufhidden, vim.bo[shown].modifiable = 'wipe', false
  -- Treesitter or syntax: whatever colours a diff here.
  vim.bo[shown].filetype = 'diff'

  local widest = 40
  for _, line in ipairs(lines) do
    widest = math.max(widest, vim.fn.strdisplaywidth(line))
  end
  local width = math.max(1, math.min(widest, vim.o.columns - 4))
  local height = math.max(1, math.min(#lines, vim.o.lines - vim.o.cmdheight - 4))
  local home = vim.api.nvim_get_current_win()
  local win = vim.api.nvim_open_win(shown, true, {
    relative = 'editor',
    row = math.max(0, math.floor((vim.o.lines - height) / 2) - 1),
    col = math.max(0, math.floor((vim.o.columns - width) / 2)),
    width = width,
    height = height,
    style = 'minimal',
    border = 'rounded',
    title = (' %s '):format(title),
    footer = ' y: apply   n: leave as it is ',
    footer_pos = 'right',
  })
  vim.wo[win].wrap = false

  local opened = vim.uv.now()
  local function close(agreed)
    return function()
      if agreed and vim.uv.now() - opened < HASTE_MS then
        return -- a key that was meant for the text
      end
      if vim.api.nvim_win_is_valid(win) then
        vim.api.nvim_win_close(win, true)
      end
      if vim.api.nvim_win_is_valid(home) then
        vim.api.nvim_set_current_win(home)
      end
      if agreed then
        apply()
      end
    end
  end
  for keys, agreed in pairs({ y = true, ['<CR>'] = true, n = false, q = false, ['<Esc>'] = false }) do
    vim.keymap.set('n', keys, close(agreed), { buffer = shown, nowait = true })
  end
end

return M
