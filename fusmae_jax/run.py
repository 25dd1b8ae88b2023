"""The run directory: what it says about itself, and whether it may be continued."""

import importlib.metadata
import json
import pathlib
from collections.abc import Container

import jax
import ml_collections
import numpy as np

from data_pipeline import files, sensors
from data_pipeline.errors import InputError

# These say how a run is carried out; all others say what its steps mean.
FREE = (
    "model.attention",
    "model.remat",
    "fsdp",
    "fsdp_min_size",
    "log_every",
    "eval_every",
    "eval_pairs",
    "eval_draws",
    "data.eval_split",
    "figure_pairs",
    "judge.every",
    "judge.labels",
    "judge.train_pairs",
    "judge.eval_pairs",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "accumulate",
    "data.dir",
    "data.allow_overlap",
    "data.threads",
    "data.workers",
)
PLACES = "places.npy"
# Of run directories; more when this version could not read them any more.
FORMAT = 1
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def flatten(config: dict, prefix: str = "") -> dict:
    """Nested fields as {"model.dim": 768, ...}, tuples as lists like JSON's."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(old: dict, new: dict, free: Container[str] = FREE) -> list[str]:
    """Names the fields, other than `free`, in which two configs differ."""
    old, new = flatten(old), flatten(new)
    return [
        f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)"
        for key in sorted(old.keys() | new.keys())
        if key not in free and old.get(key) != new.get(key)
    ]


def describe(contract: dict[str, sensors.Sensor]) -> dict:
    """The contract as JSON gives it back."""
    plain = {name: sensor.describe() for name, sensor in contract.items()}
    return json.loads(json.dumps(plain))


def open_workdir(
    workdir,
    config: ml_collections.ConfigDict,
    contract: dict[str, sensors.Sensor],
    data: dict,
    free: Container[str] = FREE,
) -> None:
    """Makes `workdir` this run's, or checks that it already is.

    Args:
        workdir: the run directory.
        config: the resolved config.
        contract: the sensors with the bands in use.
        data: the dataset's fingerprint.
        free: fields of the config that may change when the run goes on.

    Raises:
        InputError: it holds another run or something else; nothing is touched.
    """
    if "://" in str(workdir):
        raise InputError(
            f"{workdir} is an object store, to which metrics cannot be appended; mount "
            "it, or choose a --workdir on a file system."
        )
    workdir = pathlib.Path(workdir)
    path, aside = workdir / "config.json", workdir / "config.json.part"
    if path.exists():
        saved = _read(path)
        fields = differences(saved["config"], config.to_dict(), free)
        fields += differences({"dataset": saved["data"]}, {"dataset": data})
        fields += differences(saved["contract"], describe(contract))
        if fields:
            raise InputError(
                f"{workdir} holds another run, which differs in {', '.join(fields)}; "
                "choose another --workdir, or launch with that run's values."
            )
        return
    # Host 0 may be writing, or may have been killed while it was.
    if workdir.exists() and (
        not workdir.is_dir() or set(workdir.iterdir()) - {path, aside}
    ):
        raise InputError(
            f"{workdir} is not empty and holds no run (no config.json); choose "
            "another --workdir."
        )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        description = {
            "format": FORMAT,
            "config": config.to_dict(),
            "contract": describe(contract),
            "data": data,
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        aside.write_text(json.dumps(description, indent=2) + "\n")
        aside.replace(path)


def load(
    workdir,
) -> tuple[ml_collections.ConfigDict, dict[str, sensors.Sensor]]:
    """The config of the run in `workdir`, and the contract it was trained under.

    Raises:
        InputError: there is no run, or its description is damaged.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(
            f"{workdir} holds no run (no config.json); name a run's directory, as "
            "--workdir made it."
        )
    saved = _read(path)
    contract = {name: sensors.restore(s) for name, s in saved["contract"].items()}
    return ml_collections.ConfigDict(saved["config"]).lock(), contract


def _read(path: pathlib.Path) -> dict:
    """What a config.json says of its run: its config, contract and data."""
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again.") from error
    parts = ("config", "contract", "data")
    if not isinstance(saved, dict) or not all(
        isinstance(saved.get(part), dict) for part in parts
    ):
        raise InputError(
            f"{path} does not describe a run, as it lacks some of {list(parts)}; copy "
            "it again."
        )
    there = saved.get("format", FORMAT)  # the first runs did not say
    if there != FORMAT:
        raise InputError(
            f"{path} has format {there!r} and this version knows {FORMAT} alone; "
            "update fusmae_jax."
        )
    return saved


def remember_places(workdir, codes: np.ndarray) -> None:
    """Keeps what `sources.place_codes` says of the training pairs.

    With it a later evaluation knows pairs that were trained on, wherever the training
    data have gone.
    """
    path = pathlib.Path(workdir) / PLACES
    if jax.process_index() == 0 and not path.exists():
        with files.aside(path).open("wb") as file:
            np.save(file, codes)
        pathlib.Path(file.name).replace(path)


def keeps_places(workdir) -> bool:
    """Whether the run in `workdir` says what it was trained on."""
    return (pathlib.Path(workdir) / PLACES).exists()


def trained_on(workdir, codes: np.ndarray) -> int:
    """How many places, by their codes, the run in `workdir` was trained on.

    Nothing is known of pairs without a place, nor of a run that kept none.
    """
    path = pathlib.Path(workdir) / PLACES
    if not path.exists():
        return 0
    try:
        return len(np.intersect1d(np.load(path), codes))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again.") from error
