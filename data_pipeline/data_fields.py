"""What a config's `data` may say, whichever task reads it; see `sources`."""

from collections.abc import Iterable

from data_pipeline import dataset_card as metadata, layout, mixtures, sources
from data_pipeline.dataset_card import SPLITS
from data_pipeline.errors import InputError
from data_pipeline.fields import SEED, Field, choice, flag, number, location, several
from data_pipeline.fields import text, whole
from data_pipeline.sensors import SENSORS

FIELDS = {
    "source": choice(*sources.SOURCES),
    "dir": location(many=True),
    "weights": several(number(above=0.0), twice=True),
    "split": choice(*SPLITS),
    "eval_split": choice(*SPLITS),
    "val_split": choice(*SPLITS),
    "test_split": choice(*SPLITS),
    "eval_dir": location(many=True),
    "classes": several(text(filled=True)),
    "fraction": number(above=0.0, most=1.0),
    "subset_seed": SEED,
    "statistics": choice(*metadata.STATISTICS),
    "allow_overlap": flag(),
    "threads": whole(0, 1024),
    "workers": whole(0, 1024),
    "stall_seconds": number(least=0.0),
    "count": whole(1),
    "size": whole(1, 4096),
    "seed": whole(0, 2**32 // len(SPLITS) - 1),  # splits have seeds of their own
}


def rows(names: Iterable[str]) -> dict[str, Field]:
    """The table's rows of some fields of `config.data`."""
    return {f"data.{name}": FIELDS[name] for name in names}


def check(data, others: Iterable[str] = ()) -> None:
    """Refuses what cannot be true of any data.

    Args:
        data: the config's `data`, of which each field alone fits its row.
        others: the names of the splits that are not learnt from.

    Raises:
        InputError: fields contradict each other, or there is no folder to read.
    """
    elsewhere, others = data.get("eval_dir", ""), tuple(others)
    if data.source != "records":
        for name, folder in (("dir", data.dir), ("eval_dir", elsewhere)):
            if folder:
                raise InputError(
                    f"data.{name} is {folder!r}, but data.source={data.source} reads "
                    "no folder; set data.source=records, or leave it empty."
                )
    if data.source in sources.PROCEDURAL:
        layout.native(data.size, SENSORS)  # refuses sizes not whole on a coarser grid
    folders = [str(folder) for folder in sources.folders(data)]
    if len(set(folders)) < len(folders):
        raise InputError(f"data.dir is {data.dir!r}; name each dataset once.")
    if data.get("weights", ()):
        mixtures.check_weights(data.weights, len(folders))
    if elsewhere and others and set(others) == {data.split}:
        raise InputError(
            f"data.eval_dir is {elsewhere!r}, but only split {data.split} is wanted, "
            "which is read from data.dir; name another split, or leave it empty."
        )
