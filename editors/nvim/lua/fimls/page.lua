--- What comes while the user may be at something else: pages, lists and messages that wait until they do not disturb.
local M = {}

--- Calls back when the user is in normal mode, and in the buffer if one is given: nobody is torn from what he types.
--- Until then `message` is said once. Of one `kind` only the newest is kept waiting.
function M.when_back(kind, buf, message, callback)
  local function back()
    return (not buf or vim.api.nvim_get_current_buf() == buf) and vim.api.nvim_get_mode().mode == 'n'
  end
  if back() then
    return callback()
  end
  if message then
    vim.notify('fimls: ' .. message, vim.log.levels.INFO)
  end
  local name = 'fimls.' .. kind
  vim.api.nvim_create_autocmd({ 'BufEnter', 'ModeChanged' }, {
    group = vim.api.nvim_create_augroup(name, {}), -- a newer one takes its place
    callback = function()
      vim.schedule(function()
        if back() and callback then
          vim.api.nvim_create_augroup(name, {})
          local once = callback
          callback = nil
          once()
        end
      end)
    end,
  })
end

local waiting = {} -- messages

--- Says something that the user does not wait for, in normal mode: in insert mode he would not see it, or it would take
--- a key of his.
function M.say_later(message)
  waiting[#waiting + 1] = 'fimls: ' .. message
  M.when_back('message', nil, nil, function()
    local all = table.concat(waiting, '\n')
    waiting = {}
    vim.notify(all, vim.log.levels.INFO)
  end)
end

--- Markdown in a split; `q` closes it.
function M.open(name, markdown)
  local buf = vim.api.nvim_create_buf(false, true)
  vim.api.nvim_buf_set_lines(buf, 0, -1, true, vim.split(markdown, '\n', { plain = true }))
  vim.bo[buf].bufhidden = 'wipe'
  pcall(vim.api.nvim_buf_set_name, buf, 'fimls://' .. name) -- an older page may have it
  vim.cmd('botright split')
  vim.api.nvim_win_set_buf(0, buf)
  vim.wo.linebreak = true
  vim.bo[buf].filetype = 'markdown'
  vim.bo[buf].modifiable = false
  vim.keymap.set('n', 'q', '<Cmd>close<CR>', { buffer = buf, nowait = true })
end

return M
