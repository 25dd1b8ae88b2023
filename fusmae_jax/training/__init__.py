"""Training: the compiled step, and what carries a run to its end."""
