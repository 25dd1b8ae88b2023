"""What a config's `data` may say, whichever task reads it; see `sources`."""

from collections.abc import Iterable

from data_pipeline import dataset_card, layout, mixtures, sources
from data_pipeline.config_fields import (
    Field,
    choice,
    flag,
    location,
    number,
    seed,
    several,
    text,
    whole,
)
from data_pipeline.dataset_card import SPLITS
from data_pipeline.errors import InputError
from data_pipeline.sensors import SENSORS

FIELDS = {
    "source": choice(
        *sources.SOURCES,
        meaning="Where pairs come from: the records in data.dir, the sample that comes "
        "with the project, or made-up scenes.",
    ),
    "dir": location(
        many=True,
        meaning="Folder of a dataset that configs/prepare_*.py built, or several with "
        "commas between them.",
    ),
    "weights": several(
        number(above=0.0),
        twice=True,
        meaning="Of several datasets, how often pairs are drawn from each; () counts "
        "their pairs.",
    ),
    "split": choice(*SPLITS, meaning="Split that is learnt from."),
    "eval_split": choice(*SPLITS, meaning="Split that is held out."),
    "val_split": choice(*SPLITS, meaning="Split that settings are chosen on."),
    "test_split": choice(*SPLITS, meaning="Split that is scored, once."),
    "eval_dir": location(
        many=True,
        meaning="Folder of the splits that are not learnt from; empty for data.dir.",
    ),
    "classes": several(
        text(filled=True),
        meaning="Only pairs with one of these classes are used; () takes all.",
    ),
    "fraction": number(
        above=0.0,
        most=1.0,
        meaning="Share of the training pairs that is used, every class kept.",
    ),
    "subset_seed": seed("Seed of the draw of data.fraction."),
    "statistics": choice(
        *dataset_card.STATISTICS,
        meaning="Means and deviations that normalise bands: those published with the "
        "archive, or those computed when the dataset was built.",
    ),
    "allow_overlap": flag(
        meaning="Whether pairs that are learnt from may be held-out or tested ones too."
    ),
    "threads": whole(
        0, 1024, meaning="Threads that read records; 0 for one a core, at most 8."
    ),
    "workers": whole(
        0, 1024, meaning="Processes that the threads are spread over; 0 for none."
    ),
    "stall_seconds": number(
        least=0.0,
        meaning="Seconds of waiting for data until the log says so; 0 for never.",
    ),
    "count": whole(1, meaning="Made-up scenes of a split."),
    "size": whole(1, 4096, meaning="Side of a made-up scene in pixels of 10 m."),
    "seed": whole(
        0,
        2**32 // len(SPLITS) - 1,  # splits have seeds of their own
        meaning="Seed of the made-up scenes.",
    ),
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
    folders = sources.folders(data)
    if len(set(folders)) < len(folders):
        raise InputError(f"data.dir is {data.dir!r}; name each dataset once.")
    if data.get("weights", ()):
        mixtures.check_weights(data.weights, len(folders))
    if elsewhere and others and set(others) == {data.split}:
        raise InputError(
            f"data.eval_dir is {elsewhere!r}, but only split {data.split} is wanted, "
            "which is read from data.dir; name another split, or leave it empty."
        )
