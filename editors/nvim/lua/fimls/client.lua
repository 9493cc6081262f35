--- The server: started, watched, started again, and what it says about itself.
local config = require('fimls.config')
local lsp = require('fimls.lsp')

local M = {}

-- A server that dies is started again after these pauses (ms); when they are used up within three minutes, it is left.
M.pauses = { 500, 2000, 5000, 15000, 30000 }
local WINDOW_S = 180
local MOVED_MS = 80

local deaths = {} -- times
local told = false
local managed = {} -- ids of the clients whose server offers inline completion
local homes = {} -- id -> set of buffers
local base -- what the server was last started with, `command` being the list of strings
local newest -- id of the client that was started last, if by us
local status = { state = 'stopped', message = 'the server is not running', model = '' }

function M.status()
  return status
end

local function set_status(new)
  status = new
  pcall(vim.api.nvim_exec_autocmds, 'User', { pattern = 'FimlsStatus', modeline = false })
  vim.cmd('redrawstatus!')
end

local function fail(message)
  set_status({ state = 'failed', message = message, model = '' })
  if not told then
    told = true
    vim.notify('fimls: ' .. message, vim.log.levels.ERROR)
  end
end

function M.suggests(client)
  return managed[client.id] == true
end

--- Neovim 0.12 would draw too if the user switched vim.lsp.inline_completion on for other servers: it goes by this
--- entry, which we take and keep for ourselves.
local function claim(client)
  if client.server_capabilities.inlineCompletionProvider then
    managed[client.id] = true
    client.server_capabilities.inlineCompletionProvider = nil
  end
end

--- The client that runs or is about to.
local function running()
  local client = newest and vim.lsp.get_client_by_id(newest) or lsp.client()
  return client and not (client.rpc and client.rpc.is_closing()) and client or nil
end

local start

local function died(buffers, code)
  local now = vim.uv.now() / 1000
  deaths = vim.tbl_filter(function(at)
    return now - at < WINDOW_S
  end, deaths)
  deaths[#deaths + 1] = now
  local pause = M.pauses[#deaths]
  if not pause then
    fail(('the server ended %d times in three minutes, the last time with exit code %s. `:Fimls log` may tell why; '
      .. '`:Fimls restart` tries again.'):format(#deaths, code))
    return
  end
  local message = ('the server ended with exit code %s and is started again'):format(code)
  set_status({ state = 'loading', message = message, model = '' })
  local announced = status
  vim.defer_fn(function()
    if status ~= announced then
      return -- restarted by hand meanwhile
    end
    for buf in pairs(buffers) do
      if vim.api.nvim_buf_is_loaded(buf) then
        start(buf)
      end
    end
    if status == announced then -- all its buffers are gone: the next one to open starts it
      set_status({ state = 'stopped', message = 'the server is not running', model = '' })
    end
  end, pause)
end

--- A server's command as Neovim may take it: a function. It sees how the process ends: Neovim itself would report every
--- exit code with a message of its own.
local function launcher(run)
  return function(dispatchers)
    local asked = false
    local on_exit = dispatchers.on_exit
    dispatchers.on_exit = function(code, signal)
      on_exit(0, 0)
      vim.schedule(function()
        local buffers = run.id and homes[run.id] or { [run.buf] = true }
        managed[run.id or 0], homes[run.id or 0] = nil, nil
        require('fimls.fill').lost(run.id)
        require('fimls.models').lost(run.id)
        if vim.v.exiting ~= vim.NIL then
          return
        elseif not asked then
          died(buffers, signal ~= 0 and ('%d (signal %d)'):format(code, signal) or code)
        elseif not running() then
          set_status({ state = 'stopped', message = 'the server was stopped', model = '' })
        end
      end)
    end
    local rpc = vim.lsp.rpc.start(base.command, dispatchers, { cwd = base.cmd_cwd, env = base.cmd_env })
    local request, terminate = rpc.request, rpc.terminate
    rpc.request = function(method, ...)
      asked = asked or method == 'shutdown'
      return request(method, ...)
    end
    rpc.terminate = function(...)
      asked = true
      return terminate(...)
    end
    return rpc
  end
end

--- A folder of another project is told to the server that runs: one server is enough.
local function add_folder(client, root)
  local can = vim.tbl_get(client.server_capabilities or {}, 'workspace', 'workspaceFolders', 'changeNotifications')
  if not root or not can then
    return
  end
  local folder = { uri = vim.uri_from_fname(root), name = root }
  for _, known in ipairs(client.workspace_folders or {}) do
    if known.uri == folder.uri then
      return
    end
  end
  client.workspace_folders = vim.list_extend(client.workspace_folders or {}, { folder })
  lsp.notify(client, 'workspace/didChangeWorkspaceFolders', { event = { added = { folder }, removed = {} } })
end

local function by_options(buf)
  local options = config.options
  local settings = vim.tbl_isempty(options.settings) and vim.empty_dict() or options.settings
  return vim.tbl_extend('force', M.shared(), {
    command = options.cmd,
    cmd_env = options.cmd_env,
    root_dir = M.root(buf),
    init_options = settings,
    settings = { fimls = settings },
  })
end

start = function(buf)
  local client = running()
  if client then
    vim.lsp.buf_attach_client(buf, client.id)
    return
  end
  base = base or by_options(buf)
  if vim.fn.executable(base.command[1]) == 0 then
    fail(('%s cannot be run. Install fimls, or name its program with the option cmd.'):format(base.command[1]))
    return
  end
  local run = { buf = buf }
  local given = vim.tbl_extend('force', base, { cmd = launcher(run) })
  local function never()
    return false
  end
  set_status({ state = 'loading', message = 'the server starts', model = '' })
  local ok, id = pcall(vim.lsp.start, given, { bufnr = buf, reuse_client = never })
  if not ok or not id then
    return fail(('%s could not be started; `:Fimls log` may tell why.'):format(base.command[1]))
  end
  run.id, newest = id, id
end

--- What both ways of starting have in common: setup() and vim.lsp.config.
function M.shared()
  local capabilities = vim.lsp.protocol.make_client_capabilities()
  capabilities.textDocument.inlineCompletion = { dynamicRegistration = false }
  capabilities.experimental = { fimls = { status = true, offers = true } }
  return {
    name = 'fimls',
    capabilities = capabilities,
    handlers = {
      ['fimls/offerModel'] = function(_, result)
        require('fimls.models').offered(result)
      end,
      ['fimls/didChangeStatus'] = function(_, result)
        if type(result) == 'table' and type(result.state) == 'string' then
          local loaded = status.state == 'loading' and result.state == 'ready'
          set_status(result)
          if loaded then
            -- What was typed meanwhile got no answer.
            require('fimls.suggest').changed()
          end
        end
      end,
    },
  }
end

function M.root(buf)
  local name = vim.api.nvim_buf_get_name(buf)
  if name == '' then
    return vim.uv.cwd()
  end
  return vim.fs.root(buf, { '.git', '.hg', 'pyproject.toml', 'package.json', 'Cargo.toml', 'go.mod' }) or vim.fs.dirname(name)
end

--- Starts the server for a buffer, or attaches the one that runs, if suggestions are wanted there.
function M.open(buf)
  if not vim.api.nvim_buf_is_valid(buf) or not vim.api.nvim_buf_is_loaded(buf) then
    return
  end
  if require('fimls.suggest').refused(buf) or #vim.lsp.get_clients({ name = 'fimls', bufnr = buf }) > 0 then
    return
  end
  local client = running()
  if client then
    vim.lsp.buf_attach_client(buf, client.id)
    add_folder(client, M.root(buf))
    return
  end
  -- One that failed, or is about to be started again, is not for every new buffer to try.
  if status.state ~= 'stopped' then
    return
  end
  start(buf)
end

--- The end of a client that vim.lsp.enable started (Neovim itself has said so): the next ones are started here.
function M.ended(code, signal, id)
  vim.schedule(function()
    local buffers = homes[id] or {}
    managed[id], homes[id] = nil, nil
    require('fimls.fill').lost(id)
    require('fimls.models').lost(id)
    if vim.v.exiting == vim.NIL and (code ~= 0 or (signal ~= 0 and signal ~= 15)) and base then
      died(buffers, code)
    end
  end)
end

--- LspAttach, whoever started the client.
function M.attached(client, buf)
  claim(client)
  homes[client.id] = homes[client.id] or {}
  homes[client.id][buf] = true
  if client.id ~= newest and type(client.config.cmd) == 'table' then
    base = vim.tbl_extend('force', client.config, { command = client.config.cmd, on_exit = false })
    base.on_exit = nil
  end
  require('fimls.keymaps').attach(buf)
  if buf == vim.api.nvim_get_current_buf() then
    M.focus(buf)
    if vim.api.nvim_get_mode().mode:sub(1, 1) == 'i' then
      require('fimls.suggest').changed()
    end
  end
end

local moving = assert(vim.uv.new_timer())

--- Tells which document is looked at, and where the cursor is: what will be asked there is read in idle time.
function M.focus(buf)
  moving:stop()
  local client = lsp.client(buf)
  if client and client.initialized then
    local params = { textDocument = { uri = vim.uri_from_bufnr(buf) } }
    if buf == vim.api.nvim_get_current_buf() then
      local at = vim.api.nvim_win_get_cursor(0)
      params.position = lsp.position(buf, at[1] - 1, at[2], client.offset_encoding)
    end
    lsp.notify(client, 'textDocument/didFocus', params)
  end
end

--- The cursor has moved: the same, once it rests.
function M.moved(buf)
  if lsp.client(buf) then
    moving:start(MOVED_MS, 0, vim.schedule_wrap(function()
      if buf == vim.api.nvim_get_current_buf() then
        M.focus(buf)
      end
    end))
  end
end

--- The options have changed: the next start goes by them.
function M.reconfigure()
  base = nil
end

function M.restart()
  deaths, told = {}, false
  require('fimls.suggest').dismiss()
  local client = running()
  local buffers = client and homes[client.id] or {}
  if client then
    lsp.stop(client)
  end
  -- Only when the old one has gone: two would answer.
  local tries = 0
  local function again()
    tries = tries + 1
    local left = vim.lsp.get_clients({ name = 'fimls' })
    if (running() or #left > 0) and tries < 100 then
      if tries == 40 then -- it does not answer to a polite word
        for _, each in ipairs(left) do
          lsp.terminate(each)
        end
      end
      return vim.defer_fn(again, 50)
    end
    newest = nil
    set_status({ state = 'stopped', message = 'the server is not running', model = '' })
    for _, buf in ipairs(vim.api.nvim_list_bufs()) do
      if buffers[buf] or not client then
        M.open(buf)
      end
    end
  end
  again()
end

return M
