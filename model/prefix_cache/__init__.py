"""TODO prefix_cache."""
