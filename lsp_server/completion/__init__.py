"""TODO completion."""
