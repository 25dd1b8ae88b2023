"""From archives to batches of native-resolution pixels; never imports jax.

Shape letters: `H W` pixels of a grid, `C` bands, `B` pairs in a batch.
"""

import sys

if sys.platform == "win32":
    raise ImportError(
        "fusmae_jax runs on Linux and macOS, whose locks it uses; on Windows, run it "
        "in WSL."
    )
