"""Fus-MAE in JAX: masked autoencoding of fused Sentinel-1 and Sentinel-2 patches.

Shape letters used throughout:
    B batch    H, W pixels    C bands           P patch side, pixels
    N tokens per sensor       K tokens kept     D width    h heads    d head width
    E = P * P * C values of a patch
"""
