--- fimls in Neovim: suggestions of a language server drawn as ghost text. See `:help fimls`.
local M = {}

local ready = false

--- Autocommands, once: for setup() and for clients that vim.lsp.enable starts.
local function prepare()
  if ready then
    return
  end
  ready = true
  local client = require('fimls.client')
  local suggest = require('fimls.suggest')
  local group = vim.api.nvim_create_augroup('fimls', {})
  suggest.auto = require('fimls.config').options.auto_trigger
  suggest.attach_events(group)
  vim.api.nvim_create_autocmd({ 'BufEnter', 'InsertEnter' }, {
    group = group,
    callback = function(event)
      client.focus(event.buf)
    end,
  })
  vim.api.nvim_create_autocmd('CursorMoved', { -- not in Insert mode: there it moves with each key
    group = group,
    callback = function(event)
      client.moved(event.buf)
    end,
  })
  vim.api.nvim_create_autocmd('LspProgress', {
    group = group,
    callback = function(event)
      require('fimls.models').progress(event)
    end,
  })
  vim.lsp.commands['fimls.fill'] = function(command, context)
    require('fimls.fill').from_action((command.arguments or {})[1], context)
  end
end

--- Called by plugin/fimls.lua for every client of that name.
function M.attached(client, buf)
  prepare()
  require('fimls.client').attached(client, buf)
end

--- Starts the server for the buffers that are open and will be opened. Options: `:help fimls-options`.
function M.setup(options)
  local config = require('fimls.config')
  if vim.fn.has('nvim-0.10') == 0 then
    config.warn_once('Neovim 0.10 or newer is needed')
    return
  end
  config.options = config.resolve(options)
  prepare()
  require('fimls.suggest').auto = config.options.auto_trigger
  local client = require('fimls.client')
  client.reconfigure()
  vim.api.nvim_create_autocmd({ 'BufEnter', 'FileType', 'BufFilePost', 'BufWritePost' }, {
    group = vim.api.nvim_create_augroup('fimls.start', {}),
    callback = function(event)
      -- Later: what else happens to a new buffer (its type, its options) comes first.
      vim.schedule(function()
        client.open(event.buf)
      end)
    end,
  })
  if vim.v.vim_did_enter == 1 then
    client.open(vim.api.nvim_get_current_buf())
  end
end

--- Accepts the suggestion ('all', 'word' or 'line') as one undo step. false: there is none.
function M.accept(unit)
  local keys = require('fimls.suggest').keys(unit or 'all')
  if keys then
    vim.api.nvim_feedkeys(vim.api.nvim_replace_termcodes(keys, true, true, true), 'ni', false)
  end
  return keys ~= nil
end

function M.next()
  require('fimls.suggest').cycle(1)
end

function M.prev()
  require('fimls.suggest').cycle(-1)
end

function M.trigger()
  require('fimls.suggest').trigger()
end

function M.dismiss()
  require('fimls.suggest').dismiss()
end

--- Whether a suggestion is on the screen.
function M.visible()
  return require('fimls.suggest').visible()
end

--- Switches automatic suggestions off and on.
function M.toggle()
  local suggest = require('fimls.suggest')
  suggest.auto = not suggest.auto
  suggest.dismiss()
  vim.cmd('redrawstatus!')
  return suggest.auto
end

local signs = { ready = '✓', busy = '…', loading = '…', off = 'off', failed = '✗' }

--- A piece of the status line: empty where there are no suggestions.
function M.statusline()
  local status = require('fimls.client').status()
  local buf = vim.api.nvim_get_current_buf()
  if not ready or status.state == 'stopped' or require('fimls.suggest').refused(buf) then
    return ''
  end
  if require('fimls.fill').running() then
    return 'fimls fills in'
  end
  local fetched = require('fimls.models').fetched()
  if fetched then
    return ('fimls fetches %d%%'):format(fetched)
  end
  if type(status.progress) == 'number' and status.state == 'loading' then
    return ('fimls %d%%'):format(math.floor(status.progress * 100 + 0.5))
  end
  if not require('fimls.suggest').auto and status.state ~= 'failed' then
    return 'fimls off'
  end
  return 'fimls ' .. (signs[status.state] or status.state)
end

return M
