--- For `vim.lsp.enable('fimls')`, Neovim 0.11 or newer. `require('fimls').setup()` does not need it.
local shared = require('fimls.client').shared()
shared.name = nil
shared.cmd = { 'fimls', 'lsp' }
shared.root_markers = { '.git', '.hg', 'pyproject.toml', 'package.json', 'Cargo.toml', 'go.mod' }
shared.on_exit = require('fimls.client').ended
-- One server for all projects; setup() may have started it.
shared.reuse_client = function(client)
  return client.name == 'fimls' and not client:is_stopped()
end
return shared
