"""Makes the pictures of README and docs from a finished quickstart.

python docs/images.py --run=runs/quickstart
"""

import pathlib
import shutil
import sys

from absl import app, flags

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from data_pipeline import synthetic  # noqa: E402
from data_pipeline.building import contact_sheet  # noqa: E402

_RUN = flags.DEFINE_string("run", "runs/quickstart", "A finished quickstart.")
IMAGES = ROOT / "docs" / "images"


def main(argv):
    del argv
    made = pathlib.Path(_RUN.value) / "figures" / "reconstruction.png"
    shutil.copy(made, IMAGES / "quickstart.png")
    scenes = synthetic.Scenes(6)
    contact_sheet.draw(scenes.description, scenes, IMAGES / "synthetic.png")


if __name__ == "__main__":
    app.run(main)
