"""Readers of archives, one module each; see `base`."""
