--- `:Fimls`.
local lsp = require('fimls.lsp')

local M = {}

local function say(message)
  vim.notify('fimls: ' .. message, vim.log.levels.INFO)
end

local function document()
  return { textDocument = { uri = vim.uri_from_bufnr(0) } }
end

--- Asks the server if there is one that knows the method; otherwise `without` is called.
local function ask(method, params, with, without)
  local client = lsp.client()
  if not client then
    return without()
  end
  lsp.request(client, method, params, function(err, result)
    if err then
      without(err)
    else
      with(result)
    end
  end)
end

local function described(status)
  local text = status.state
  if status.model and status.model ~= '' then
    text = ('%s (model %s)'):format(text, status.model)
  end
  return status.message ~= '' and ('%s: %s'):format(text, status.message) or text
end

local function show_status()
  local refused = require('fimls.suggest').refused(vim.api.nvim_get_current_buf())
  local here = refused and ('\nno suggestions in this buffer: ' .. refused) or ''
  ask('fimls/status', document(), function(status)
    local counts = status.counts or {}
    say(('%s\nserver %s; shown %d, accepted %d, partly %d, typed through %d%s'):format(
      described(status),
      status.version or '?',
      counts.shown or 0,
      counts.accepted or 0,
      counts.partlyAccepted or 0,
      counts.typedThrough or 0,
      here
    ))
  end, function()
    say(described(require('fimls.client').status()) .. here)
  end)
end

local function show_why()
  ask('fimls/why', document(), function(answer)
    if type(answer) ~= 'table' or type(answer.markdown) ~= 'string' then
      return say('nothing was asked yet')
    end
    require('fimls.page').open('why', answer.markdown)
  end, function(err)
    say(err and 'this server does not tell; a newer fimls does' or 'no server runs')
  end)
end

local function lsp_log()
  local log = require('vim.lsp.log')
  return log.get_filename and log.get_filename() or vim.lsp.get_log_path()
end

--- The newest log of the server, or Neovim's log of all servers.
local function show_log()
  local function open(folder)
    local newest, time = nil, -1
    for name, kind in vim.fs.dir(folder or '') do
      local path = vim.fs.joinpath(folder, name)
      local stat = kind == 'file' and vim.uv.fs_stat(path)
      if stat and stat.mtime.sec > time then
        newest, time = path, stat.mtime.sec
      end
    end
    vim.cmd('botright split ' .. vim.fn.fnameescape(newest or lsp_log()))
    vim.cmd('normal! G')
  end
  ask('fimls/status', document(), function(status)
    open(type(status.log) == 'string' and vim.fn.isdirectory(status.log) == 1 and status.log or nil)
  end, function()
    open()
  end)
end

local function snooze(arguments)
  local minutes = tonumber(arguments[1] or 15)
  if not minutes or minutes < 0 then
    return say('`:Fimls snooze` takes a number of minutes; 0 ends it')
  end
  require('fimls').dismiss()
  ask('fimls/snooze', { minutes = minutes }, function()
    say(minutes > 0 and ('no automatic suggestions for %g minutes'):format(minutes) or 'awake again')
  end, function(err)
    local old = err and err.code == -32601
    local reason = old and 'this server cannot snooze; `:Fimls toggle` switches suggestions off' or err and err.message
    say(reason or 'no server runs')
  end)
end

local function fill(kind)
  return function(arguments, command)
    require('fimls.fill').command(kind, command, arguments)
  end
end

local actions = {
  status = show_status,
  why = show_why,
  log = show_log,
  restart = function()
    require('fimls.client').restart()
  end,
  toggle = function()
    say(require('fimls').toggle() and 'automatic suggestions on' or 'automatic suggestions off')
  end,
  snooze = snooze,
  model = function(arguments)
    require('fimls.models').command(arguments)
  end,
  doctor = function()
    require('fimls.models').doctor()
  end,
  fill = fill('fill'),
  body = fill('body'),
  docstring = fill('docstring'),
  cancel = function()
    local models, edit = require('fimls.models'), require('fimls.fill')
    local other = models.running() and not edit.running()
    return (other and models or edit).cancel()
  end,
}

function M.run(command)
  local arguments = vim.list_slice(command.fargs)
  local name = table.remove(arguments, 1) or 'status'
  local action = actions[name]
  if not action then
    local known = vim.tbl_keys(actions)
    table.sort(known)
    return say(('no such command: %s. There are: %s'):format(name, table.concat(known, ', ')))
  end
  action(arguments, command)
end

function M.complete(lead, line)
  -- Whatever range stands before the command.
  if line:match('Fimls%s+%S+%s') then
    return line:match('Fimls%s+model%s') and require('fimls.models').complete(lead) or {}
  end
  local names = vim.tbl_filter(function(name)
    return vim.startswith(name, lead)
  end, vim.tbl_keys(actions))
  table.sort(names)
  return names
end

return M
