"""fimls: stub."""
