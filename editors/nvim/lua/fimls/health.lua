--- `:checkhealth fimls`.
local config = require('fimls.config')
local lsp = require('fimls.lsp')

local M = {}

local function check_command(command)
  local path = vim.fn.exepath(command[1])
  if path == '' then
    vim.health.error(('%s cannot be run'):format(command[1]), {
      'Install fimls: uv tool install /path/to/fimls (its repository)',
      'or name its command: require("fimls").setup({ cmd = { "/path/to/fimls", "lsp" } })',
    })
    return
  end
  vim.health.ok(('server command: %s (%s)'):format(table.concat(command, ' '), path))
end

local function check_client()
  local client = lsp.client()
  local status = require('fimls.client').status()
  if not client then
    local report = status.state == 'failed' and vim.health.error or vim.health.warn
    report('no server runs: ' .. status.message, { 'Open a file; `:Fimls restart` tries again, `:Fimls log` may tell why' })
    return
  end
  local name = vim.tbl_get(client, 'server_info', 'version')
  vim.health.ok(('server %sruns for %d buffer(s)'):format(name and name .. ' ' or '', vim.tbl_count(client.attached_buffers)))
  if not require('fimls.client').suggests(client) then
    vim.health.error('this server offers no inline completion: is it fimls?')
  end
  local report = status.state == 'failed' and vim.health.error or vim.health.info
  report(('state: %s. %s'):format(status.state, status.message))
end

local function check_keys()
  local taken = {}
  for _, buf in ipairs(vim.api.nvim_list_bufs()) do
    for _, line in ipairs(vim.api.nvim_buf_is_loaded(buf) and require('fimls.keymaps').taken(buf) or {}) do
      taken[line] = true
    end
  end
  for line in pairs(taken) do
    vim.health.warn('another mapping came after ours: ' .. line, {
      'nvim-cmp and blink.cmp go on to ours by themselves when they have nothing to do ("fallback")',
      'or choose another key: setup({ keymaps = { accept = "<C-l>" } })',
    })
  end
  if not next(taken) then
    vim.health.ok('no key is taken by another mapping')
  end
end

local others = {
  ['copilot'] = 'copilot.lua',
  ['codeium'] = 'codeium.nvim',
  ['supermaven-nvim'] = 'supermaven-nvim',
  ['tabnine'] = 'tabnine-nvim',
  ['minuet'] = 'minuet-ai.nvim',
}

local function check_others()
  local found = {}
  for module, name in pairs(others) do
    if package.loaded[module] then
      found[#found + 1] = name
    end
  end
  if vim.g.loaded_copilot then
    found[#found + 1] = 'copilot.vim'
  end
  if #found > 0 then
    table.sort(found)
    vim.health.warn('others draw suggestions too: ' .. table.concat(found, ', '), { 'Switch all but one off' })
  else
    vim.health.ok('no other plugin draws suggestions')
  end
end

function M.check()
  vim.health.start('fimls')
  if vim.fn.has('nvim-0.10') == 0 then
    vim.health.error('Neovim 0.10 or newer is needed')
    return
  end
  vim.health.ok('Neovim ' .. tostring(vim.version()))
  local client = lsp.client()
  local command = client and (client.config.command or client.config.cmd) or config.options.cmd
  if type(command) == 'table' then
    check_command(command)
  end
  check_client()
  check_keys()
  check_others()
  vim.health.info('`:Fimls doctor` looks at the machine and the installation, and recommends a model')
end

return M
