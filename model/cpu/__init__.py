"""TODO cpu."""
