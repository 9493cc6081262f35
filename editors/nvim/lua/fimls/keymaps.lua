--- Keys in insert mode. Each does its work when there is something to work on, and otherwise what it did before.
local config = require('fimls.config')
local suggest = require('fimls.suggest')

local M = {}

local function code(keys)
  return vim.api.nvim_replace_termcodes(keys, true, true, true)
end

-- buffer -> keys -> the buffer's mapping that was there before ours, or false
local before = {}

--- The mapping that these keys would have without us: the buffer's own from before, or the global one as it is now.
local function previous(buf, lhs)
  local own = (before[buf] or {})[lhs]
  if own then
    return own
  end
  for _, map in ipairs(vim.api.nvim_get_keymap('i')) do
    if map.lhsraw == code(lhs) or map.lhsrawalt == code(lhs) then
      return map
    end
  end
end

--- A key with a meaning of its own: Neovim's default Tab only jumps where a snippet is filled in.
local function taken_by_another(buf, lhs)
  local map = previous(buf, lhs)
  return map and not vim.startswith(map.desc or '', 'vim.snippet.jump')
end

local pending

--- Runs the function of a mapping that is not an expression. (An expression mapping may not change text.)
function M.run()
  local callback = pending
  pending = nil
  if callback then
    callback()
  end
end

--- Types what the keys do without us, ahead of what is typed already.
local function fall_through(buf, lhs)
  local map = previous(buf, lhs)
  if not map then
    -- Where nobody maps an Alt key, it is Escape and the key.
    local alt = lhs:match('^<[mMaA]%-(.+)>$')
    if alt and #alt == 1 then
      vim.api.nvim_feedkeys(alt, 'mi', false)
      vim.api.nvim_feedkeys(code('<Esc>'), 'mi', false)
    else
      vim.api.nvim_feedkeys(code(lhs), 'ni', false)
    end
    return
  end
  local keys, escape = nil, false
  if map.callback and map.expr == 1 then
    keys = map.callback()
    keys = type(keys) == 'string' and (map.replace_keycodes == 1 and code(keys) or keys) or ''
  elseif map.callback then
    pending = map.callback
    vim.api.nvim_feedkeys(code('<Cmd>lua require("fimls.keymaps").run()<CR>'), 'ni', false)
    return
  else
    keys = code(((map.rhs or ''):gsub('<[sS][iI][dD]>', ('<SNR>%d_'):format(map.sid or 0))))
    if map.expr == 1 then
      -- As Vim evaluates it: with keys in their internal form, but the text around them plain.
      keys = vim.api.nvim_eval((keys:gsub('\128\254X', '\128')))
      escape = map.replace_keycodes ~= 1
      keys = escape and keys or code(keys)
    end
  end
  local remap = map.noremap == 0
  local own = code(lhs)
  if remap and vim.startswith(keys, own) then
    -- As Vim has it: a mapping that begins with its own keys does not start over. (Fed in reverse: each goes first.)
    vim.api.nvim_feedkeys(keys:sub(#own + 1), 'mi', escape)
    vim.api.nvim_feedkeys(own, 'ni', false)
    return
  end
  vim.api.nvim_feedkeys(keys, remap and 'mi' or 'ni', escape)
end

local function accept(unit)
  return function(buf, lhs)
    -- With a menu open the key is the menu's if it has a meaning there.
    if unit == 'all' and suggest.menu_open() and taken_by_another(buf, lhs) then
      return nil
    end
    return suggest.keys(unit)
  end
end

local function call(name, argument)
  return ('<Cmd>lua require("fimls.suggest").%s(%s)<CR>'):format(name, argument or '')
end

-- What each key types when it has something to do; nil: it falls through.
local actions = {
  accept = accept('all'),
  accept_word = accept('word'),
  accept_line = accept('line'),
  next = function()
    return call('cycle', '1')
  end,
  prev = function()
    return call('cycle', '-1')
  end,
  trigger = function()
    return call('trigger')
  end,
  dismiss = function()
    return suggest.visible() and call('dismiss') or nil
  end,
}

--- Maps the keys in a buffer. A buffer's mapping is not lost when another plugin maps the key globally later.
function M.attach(buf)
  if before[buf] then
    return
  end
  before[buf] = {}
  for name, lhs in pairs(config.options.keymaps) do
    if lhs then
      local found = vim.api.nvim_buf_call(buf, function()
        return vim.fn.maparg(lhs, 'i', false, true)
      end)
      before[buf][lhs] = found.buffer == 1 and found or false
      vim.keymap.set('i', lhs, function()
        local keys = actions[name](buf, lhs)
        if keys then
          vim.api.nvim_feedkeys(code(keys), 'ni', false)
        else
          fall_through(buf, lhs)
        end
        return ''
      end, { buffer = buf, expr = true, desc = 'fimls: ' .. name:gsub('_', ' ') })
    end
  end
end

--- The keys that another plugin has taken since, for :checkhealth.
function M.taken(buf)
  local taken = {}
  for name, lhs in pairs(config.options.keymaps) do
    if lhs and before[buf] then
      local found = vim.api.nvim_buf_call(buf, function()
        return vim.fn.maparg(lhs, 'i', false, true)
      end)
      if not vim.startswith(found.desc or '', 'fimls: ') then
        taken[#taken + 1] = ('%s (%s) belongs to %s'):format(lhs, name, found.desc or found.rhs or 'another mapping')
      end
    end
  end
  return taken
end

-- With an unloaded buffer its mappings go, and its number may come back.
vim.api.nvim_create_autocmd({ 'BufUnload', 'BufWipeout' }, {
  group = vim.api.nvim_create_augroup('fimls.keymaps', {}),
  callback = function(event)
    before[event.buf] = nil
  end,
})

return M
