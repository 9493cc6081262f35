if vim.g.loaded_fimls or vim.fn.has('nvim-0.10') == 0 then
  return
end
vim.g.loaded_fimls = true

-- Clients of this name, whether setup() or vim.lsp.enable() started them.
vim.api.nvim_create_autocmd('LspAttach', {
  group = vim.api.nvim_create_augroup('fimls.attach', {}),
  callback = function(event)
    local client = vim.lsp.get_client_by_id(event.data.client_id)
    if client and client.name == 'fimls' then
      require('fimls').attached(client, event.buf)
    end
  end,
})

vim.api.nvim_create_user_command('Fimls', function(command)
  require('fimls.commands').run(command)
end, {
  nargs = '*',
  range = true,
  desc = 'fimls: status, why, log, restart, fill, ...',
  complete = function(...)
    return require('fimls.commands').complete(...)
  end,
})
