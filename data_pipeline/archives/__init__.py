"""Readers of archives, one module each; see `data_pipeline.archive`."""
