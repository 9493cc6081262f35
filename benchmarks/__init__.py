"""Each figure with the command that makes it; RESULTS.md holds them."""
