--- The options: what they may be, and what is said about one that is not.
local M = {}

M.defaults = {
  cmd = { 'fimls', 'lsp' },
  cmd_env = nil, -- environment variables for the server
  filetypes = nil, -- nil: every normal buffer
  disabled_filetypes = {},
  settings = {}, -- the server's settings, as in `fimls.*`
  auto_trigger = true,
  debounce = 15, -- milliseconds after the last key
  highlight = 'FimlsGhostText',
  keymaps = {
    accept = '<Tab>',
    accept_word = '<M-w>',
    accept_line = '<M-l>',
    next = '<M-]>',
    prev = '<M-[>',
    dismiss = '<C-]>',
    trigger = '<M-\\>',
  },
}

local warned = {}

--- Says something once, however often it happens.
function M.warn_once(message)
  if not warned[message] then
    warned[message] = true
    vim.schedule(function()
      vim.notify('fimls: ' .. message, vim.log.levels.WARN)
    end)
  end
end

local function strings(value)
  if type(value) ~= 'table' then
    return false
  end
  for key, item in pairs(value) do
    if type(key) ~= 'number' or type(item) ~= 'string' then
      return false
    end
  end
  return true
end

local function of_type(name)
  return function(value)
    return type(value) == name
  end
end

local function key(value)
  return value == false or (type(value) == 'string' and value ~= '')
end

local rules = {
  cmd = {
    'a list of strings',
    function(value)
      return strings(value) and #value > 0
    end,
  },
  cmd_env = { 'a table', of_type('table') },
  filetypes = { 'a list of strings', strings },
  disabled_filetypes = { 'a list of strings', strings },
  settings = { 'a table', of_type('table') },
  auto_trigger = { 'true or false', of_type('boolean') },
  debounce = {
    'a number of milliseconds from 0 to 10000',
    function(value)
      return type(value) == 'number' and value >= 0 and value <= 10000
    end,
  },
  highlight = { 'the name of a highlight group', of_type('string') },
}

local function keymaps(given)
  if given == false then
    local off = {}
    for name in pairs(M.defaults.keymaps) do
      off[name] = false
    end
    return off
  end
  local result = vim.deepcopy(M.defaults.keymaps)
  if type(given) ~= 'table' then
    M.warn_once(('option keymaps: expected false or a table, not %s; the defaults are used'):format(vim.inspect(given)))
    return result
  end
  for name, value in pairs(given) do
    if M.defaults.keymaps[name] == nil then
      M.warn_once(('unknown option keymaps.%s'):format(name))
    elseif not key(value) then
      M.warn_once(('option keymaps.%s: expected keys like "<Tab>" or false, not %s'):format(name, vim.inspect(value)))
    else
      result[name] = value
    end
  end
  return result
end

--- Options over the defaults. A bad one is named once and its default taken: a typing mistake here must not cost
--- anybody the editor.
function M.resolve(given)
  local options = vim.deepcopy(M.defaults)
  if given ~= nil and type(given) ~= 'table' then
    M.warn_once(('setup() takes a table, not %s'):format(vim.inspect(given)))
    return options
  end
  for name, value in pairs(given or {}) do
    local rule = rules[name]
    if name == 'keymaps' then
      options.keymaps = keymaps(value)
    elseif not rule then
      M.warn_once(('unknown option %s'):format(tostring(name)))
    elseif not rule[2](value) then
      M.warn_once(('option %s: expected %s, not %s; the default is used'):format(name, rule[1], vim.inspect(value)))
    else
      options[name] = vim.deepcopy(value)
    end
  end
  return options
end

--- The options in force.
M.options = vim.deepcopy(M.defaults)

return M
