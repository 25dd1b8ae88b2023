"""Judging an encoder: features, tasks on top of them, and honest numbers."""
