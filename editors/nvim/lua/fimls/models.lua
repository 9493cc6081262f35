--- Models: which there are, the choice of one, fetching one, and the doctor's page. The server does the work.
local lsp = require('fimls.lsp')
local page = require('fimls.page')

local M = {}

local LIST, CHOOSE, PULL, DOCTOR = 'fimls.listModels', 'fimls.chooseModel', 'fimls.pullModel', 'fimls.doctor'
local COMPLETE_MS = 1000
local job -- what goes on: client, id, and of a pull the name, the percentage and the window
local listed = {} -- the models of the last list

local function say(message)
  vim.notify('fimls: ' .. message, vim.log.levels.INFO)
end

--- The server that runs, if it knows the command; otherwise the user is told.
local function server(command)
  local client = lsp.client()
  if not client or not client.initialized then
    return say('no server runs: ' .. require('fimls.client').status().message)
  end
  local known = vim.tbl_get(client.server_capabilities, 'executeCommandProvider', 'commands') or {}
  if not vim.tbl_contains(known, command) then
    return say('this server cannot do that; a newer fimls can')
  end
  return client
end

local function run(client, command, argument, callback)
  local params = { command = command, arguments = argument and { argument } }
  return lsp.request(client, 'workspace/executeCommand', params, callback)
end

local function size(bytes)
  return bytes < 1e9 and ('%.0f MB'):format(bytes / 1e6) or ('%.1f GB'):format(bytes / 1e9)
end

--- A field of a model, nil also where JSON has null.
local function value(model, name)
  local found = model[name]
  return found ~= vim.NIL and found ~= '' and found or nil
end

--- The columns of a row in the list: 80 together, for a terminal.
local function columns(model)
  local bytes, memory, ms = value(model, 'bytes'), value(model, 'memoryBytes'), value(model, 'suggestionMs')
  local time = ms and ('%.1f s'):format(ms / 1000) or ''
  return {
    (model.chosen and '✓ ' or model.here and '  ' or '↓ ') .. model.name,
    bytes and size(bytes) or '',
    memory and 'RAM ' .. size(memory) or '',
    model.verdict == 'does not fit' and 'too big' or time,
    value(model, 'licence') or '',
  }
end

--- The rows as they are shown, in aligned columns.
local function rows(models)
  local widths, found = {}, {}
  for i, model in ipairs(models) do
    found[i] = columns(model)
    for j, text in ipairs(found[i]) do
      widths[j] = math.max(widths[j] or 0, vim.fn.strdisplaywidth(text))
    end
  end
  return vim.tbl_map(function(row)
    for j, text in ipairs(row) do
      row[j] = text .. (' '):rep(widths[j] - vim.fn.strdisplaywidth(text))
    end
    return (table.concat(row, '  '):gsub('%s+$', ''))
  end, found)
end

--- ---- work that takes its time: fetching, the doctor ----

function M.running()
  return job ~= nil
end

--- How much is fetched, for the status line; nil: nothing is being fetched.
function M.fetched()
  return job and job.name and (job.percentage or 0)
end

local function close_note()
  if job.window and vim.api.nvim_win_is_valid(job.window) then
    vim.api.nvim_win_close(job.window, true)
  end
  job.window = nil
end

local function finish()
  close_note()
  job = nil
  vim.cmd('redrawstatus!')
end

function M.cancel()
  lsp.cancel(job.client, job.id)
  finish()
  say('cancelled')
end

--- A client has ended: an answer of it will not come.
function M.lost(id)
  if job and job.client.id == id then
    finish()
    page.say_later('the server ended; try again')
  end
end

--- Runs a command that can be cancelled; with(result) is called if it succeeds. name: of the model that it fetches.
--- true: it has begun.
local function start(client, command, argument, name, with)
  if job then
    return say('one thing at a time; `:Fimls cancel` ends what goes on')
  end
  local this = { client = client, name = name }
  job = this
  this.id = run(client, command, argument, function(err, result)
    if job ~= this then
      return -- cancelled
    end
    finish()
    if err then
      return page.say_later(err.message or 'no answer')
    end
    with(result)
  end)
  if not this.id then
    finish()
    return say('the server does not answer')
  end
  return true
end

--- In the corner of the screen, where it disturbs no text that is being written.
local function note(text)
  if job.window and vim.api.nvim_win_is_valid(job.window) then
    if vim.api.nvim_win_get_tabpage(job.window) ~= vim.api.nvim_get_current_tabpage() then
      close_note()
    end
  else
    job.window = nil
  end
  local place = { relative = 'editor', anchor = 'NE', row = 1, col = vim.o.columns, height = 1 }
  place.width = math.max(1, math.min(vim.fn.strdisplaywidth(text), vim.o.columns))
  if job.window then
    vim.api.nvim_win_set_config(job.window, place)
  else
    local buf = vim.api.nvim_create_buf(false, true)
    vim.bo[buf].bufhidden = 'wipe'
    place.style, place.focusable, place.noautocmd = 'minimal', false, true
    local ok, window = pcall(vim.api.nvim_open_win, buf, false, place)
    if not ok then -- in the command-line window there are no others
      return vim.api.nvim_buf_delete(buf, { force = true })
    end
    job.window = window
  end
  vim.api.nvim_buf_set_lines(vim.api.nvim_win_get_buf(job.window), 0, -1, true, { text })
end

--- LspProgress.
function M.progress(event)
  local params = (event.data or {}).params or {}
  local report = params.value
  if not (job and job.name and event.data.client_id == job.client.id and type(report) == 'table') then
    return
  end
  if not vim.startswith(tostring(params.token), 'fimls-pull-') or report.kind == 'end' then
    return
  end
  job.percentage = report.percentage or job.percentage or 0
  note((' fimls: %s %d%% %s '):format(job.name, job.percentage, report.message or ''))
  vim.cmd('redrawstatus!')
end

function M.doctor()
  local client = server(DOCTOR)
  if not client then
    return
  end
  local started = start(client, DOCTOR, { textDocument = { uri = vim.uri_from_bufnr(0) } }, nil, function(result)
    page.when_back('doctor', nil, 'the doctor is done; its page opens in normal mode', function()
      page.open('doctor', result.markdown)
    end)
  end)
  if started then
    say('the doctor looks at this machine, for half a minute or so')
  end
end

--- ---- the choice ----

local function choose(client, name)
  run(client, CHOOSE, { name = name }, function(err)
    page.say_later(err and err.message or ('the model is %s from now on'):format(name))
  end)
end

local function pull(client, name)
  local started = start(client, PULL, { name = name }, name, function()
    choose(client, name)
  end)
  if started then
    say(('fetching %s; `:Fimls cancel` ends it'):format(name))
  end
end

--- Fetches a model if the user says so. About a licence with conditions the server asks.
local function ask_and_pull(client, name, model)
  local bytes = model and value(model, 'bytes')
  local facts = vim.tbl_filter(function(fact)
    return fact ~= ''
  end, { bytes and size(bytes) or '', model and value(model, 'licence') or '' })
  local about = #facts > 0 and (' (%s)'):format(table.concat(facts, ', ')) or ''
  local prompt = ('fimls: %s%s is not on this machine.'):format(name, about)
  vim.cmd('redraw') -- or the question would stand behind the list before it
  vim.ui.select({ 'Fetch it', 'Leave it' }, { prompt = prompt, kind = 'fimls' }, function(answer)
    if answer == 'Fetch it' then
      pull(client, name)
    end
  end)
end

local function take(client, model)
  if model.here then
    choose(client, model.name)
  else
    ask_and_pull(client, model.name, model)
  end
end

local function pick(client, models)
  local shown = rows(models)
  local indices, timed = {}, false
  for i, model in ipairs(models) do
    indices[i] = i
    timed = timed or value(model, 'suggestionMs') ~= nil
  end
  local times = timed and 'time for a line' or 'speed: `:Fimls doctor`'
  vim.ui.select(indices, {
    prompt = ('fimls: the model (✓ chosen, ↓ to be fetched; %s)'):format(times),
    kind = 'fimls',
    format_item = function(index)
      return shown[index]
    end,
  }, function(index)
    if index then
      take(client, models[index])
    end
  end)
end

--- The model in the list that a name means: ORG/REPO also means the file of it that is here.
local function find(models, name)
  local wanted = name:lower()
  for _, model in ipairs(models) do
    local known = model.name:lower()
    if known == wanted or (model.here and vim.startswith(known, wanted .. ':')) then
      return model
    end
  end
end

local function is_path(name)
  return name:match('^[/~]') or name:match('^%.%.?[/\\]') or name:match('^%a:[/\\]')
end

--- `:Fimls model [NAME]`: of the list (or a part of the name: then a shorter list), a path, or ORG/REPO[:FILE].
function M.command(arguments)
  local name = table.concat(arguments, ' ')
  local client = server(CHOOSE)
  if not client then
    return
  end
  if is_path(name) then
    return choose(client, (vim.fn.fnamemodify(name, ':p'):gsub('(.)[/\\]$', '%1')))
  end
  run(client, LIST, nil, function(err, models)
    if err then
      return page.say_later(err.message or 'no answer')
    end
    listed = models
    local model = find(models, name)
    local close = vim.tbl_filter(function(each)
      return each.name:lower():find(name:lower(), 1, true) ~= nil
    end, models)
    if model then
      take(client, model)
    elseif name:find('/') then
      ask_and_pull(client, name)
    elseif #close == 0 then
      choose(client, name) -- the server says what is wrong with it
    else
      page.when_back('models', nil, 'the list of models opens in normal mode', function()
        pick(client, close)
      end)
    end
  end)
end

function M.complete(lead)
  if is_path(lead) then
    return vim.fn.getcompletion(lead, 'file')
  end
  local client = lsp.client()
  if client then
    local params = { command = LIST }
    listed = lsp.request_and_wait(client, 'workspace/executeCommand', params, COMPLETE_MS) or listed
  end
  local names = vim.tbl_map(function(model)
    return vim.fn.escape(model.name, ' \\')
  end, listed)
  return vim.tbl_filter(function(name)
    return vim.startswith(name, lead)
  end, names)
end

--- `fimls/offerModel`: said once by the server, for each user. It must not stop anybody who types, so it asks nothing.
function M.offered(model)
  if type(model) == 'table' and type(model.name) == 'string' then
    page.say_later(('`:Fimls model %s` gets a better model'):format(model.name))
  end
end

return M
