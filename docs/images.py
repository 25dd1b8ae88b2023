"""Makes the pictures of the README from a finished quickstart.

    python docs/images.py --run=runs/quickstart
"""

import pathlib
import shutil
import sys

from absl import app, flags

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from data_pipeline import sensors, synthetic  # noqa: E402
from fusmae_jax import figures, heldout  # noqa: E402

_RUN = flags.DEFINE_string("run", "runs/quickstart", "A finished quickstart.")
IMAGES = ROOT / "docs" / "images"


def main(argv):
    del argv
    made = pathlib.Path(_RUN.value) / "figures" / "reconstruction.png"
    shutil.copy(made, IMAGES / "quickstart.png")
    source = synthetic.Scenes(8)
    pairs = [source[i] for i in range(len(source))]
    drawn = {
        name: heldout.scenes(pairs, sensor, source.size)
        for name, sensor in sensors.SENSORS.items()
    }
    scenes = [
        {"name": pair["id"], "land_cover": pair["land_cover"]}
        | {name: images[i] for name, images in drawn.items()}
        for i, pair in enumerate(pairs)
    ]
    fig = figures.scene_figure(scenes, covers=source.classes["labels"])
    figures.save(fig, IMAGES / "synthetic.png")


if __name__ == "__main__":
    app.run(main)
