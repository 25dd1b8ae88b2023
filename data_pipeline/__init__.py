"""From archives to batches of native-resolution pixels; never imports jax.

Shape letters: `H W` pixels of a grid, `C` bands, `B` pairs in a batch.
"""
