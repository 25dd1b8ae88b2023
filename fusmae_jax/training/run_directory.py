"""The run directory: what it says about itself, and whether it may be continued."""

import contextlib
import importlib.metadata
import io
import json
import logging
import pathlib
from collections.abc import Container, Iterator

import jax
import ml_collections
import numpy as np

from data_pipeline import atomic, locks, safe_io, sensors
from data_pipeline.errors import InputError
from fusmae_jax import dtypes
from fusmae_jax.training import cluster

log = logging.getLogger("fusmae_jax")

# Fields that came later, of the first method, and what stood for them before.
LATER = {
    "loss": {"targets": "pixels", "contrast": 0.0, "temperature": 0.1},
    "model": {"feature_queries": "visible"},
}

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
    "bad_steps",  # no state that is saved depends on it
    "accumulate",
    "data.dir",
    "data.eval_dir",
    "data.allow_overlap",
    "data.threads",
    "data.workers",
    "data.stall_seconds",
)
LOCK = ".lock"
PLACES = "places.npy"
# Of run directories. A run goes on in the format in which it began: before format 2
# streams of random numbers overlapped. Those of `READS` can be evaluated.
FORMAT = 2
READS = (1, 2)
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
    dtype: str | None = None,
    origin: dict | None = None,
) -> None:
    """Makes `workdir` this run's, or checks that it already is, and locks it.

    Of several hosts the first writes and holds the lock, until its process ends. Where
    one of them cannot go on none does, as the others would wait for it.

    Args:
        workdir: the run directory.
        config: the resolved config.
        contract: the sensors with the bands in use.
        data: the dataset's fingerprint.
        free: fields of the config that may change when the run goes on.
        dtype: of matrix products, where the config is of a task that does not say.
        origin: of the first parameters, where another run has trained them and no step
            has been saved since, see `warm_start`.

    Raises:
        InputError: it holds another run or something else, is in use, or cannot be
            written; nothing is touched. Or another host has raised this.
    """
    description = {
        "format": FORMAT,
        "config": config.to_dict(),
        "contract": describe(contract),
        "data": data,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    if dtype is not None:
        description["dtype"] = dtype
    if origin is not None:
        description["init_from"] = origin
    with cluster.together(f"open {workdir}"), writing():
        _check_place(workdir)
        workdir = pathlib.Path(workdir)
        _check(workdir, description, free)
        if jax.process_index() == 0:
            _claim(workdir)
            if not _check(workdir, description, free):  # nobody else writes it now
                text = json.dumps(description, indent=2) + "\n"
                atomic.write_whole(workdir / "config.json", text)
            for pattern in ("*.part", "figures/*.part"):  # of a run that was killed
                for part in workdir.glob(pattern):
                    part.unlink()


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Says in a sentence what cannot be written, and what to do about it."""
    try:
        yield
    except OSError as error:
        raise InputError(atomic.explain(error)) from error


def _check_place(workdir) -> None:
    """Refuses what can be no directory."""
    if "://" in str(workdir):
        raise InputError(
            f"{workdir} is an object store, to which metrics cannot be appended; mount "
            "it, or choose a --workdir on a file system."
        )
    if pathlib.Path(workdir).exists() and not pathlib.Path(workdir).is_dir():
        raise InputError(f"{workdir} is a file; choose another --workdir.")


def _check(workdir: pathlib.Path, now: dict, free: Container[str]) -> bool:
    """Whether `workdir` holds the run that `now` describes already.

    Raises:
        InputError: it holds another run, or something else.
    """
    path, others = workdir / "config.json", []
    if workdir.exists():  # looked at before config.json is: what comes after is a run's
        # A run may have been killed before there was more; host 0 may be at it.
        names = [entry.name for entry in workdir.iterdir()]
        others = [x for x in names if x != LOCK and not x.startswith(path.name)]
    if path.exists():
        saved = _read(path)
        if saved.get("format", 1) != FORMAT:
            raise InputError(
                f"{workdir} holds a run of an earlier version, which drew other random "
                "numbers; finish it with that version, or choose another --workdir. "
                "Its checkpoints can be evaluated."
            )
        # Fields that no longer exist say nothing of what is done today.
        now_known = flatten(now["config"])
        known = {k: v for k, v in flatten(saved["config"]).items() if k in now_known}
        fields = differences(known, now_known, free)
        fields += differences({"dataset": saved["data"]}, {"dataset": now["data"]})
        fields += differences(saved["contract"], now["contract"])
        if "init_from" in now:
            was, is_ = ({"init_from": x.get("init_from", {})} for x in (saved, now))
            fields += differences(was, is_)
        if fields:
            raise InputError(
                f"{workdir} holds another run, which differs in {', '.join(fields)}; "
                "choose another --workdir, or launch with that run's values."
            )
    elif others:
        raise InputError(
            f"{workdir} is not empty and holds no run (no config.json); choose "
            "another --workdir."
        )
    return path.exists()


def _claim(workdir: pathlib.Path) -> None:
    """Makes the directory if need be and locks it against other runs."""
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        locks.holds(workdir / LOCK) or locks.lock(workdir / LOCK)
    except locks.Locked as holder:
        raise InputError(
            f"{workdir} is in use by {holder}; wait for it, stop it, or choose another "
            "--workdir."
        ) from None


def load(
    workdir,
) -> tuple[ml_collections.ConfigDict, dict[str, sensors.Sensor]]:
    """The config of the run in `workdir`, and the contract it was trained under.

    Raises:
        InputError: there is no run, or its description is damaged.
    """
    saved = about(workdir)
    contract = {name: sensors.restore(s) for name, s in saved["contract"].items()}
    return ml_collections.ConfigDict(saved["config"]).lock(), contract


def about(workdir) -> dict:
    """All that the config.json of the run in `workdir` says, see `load`."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(
            f"{workdir} holds no run (no config.json); name a run's directory, as "
            "--workdir made it."
        )
    return _read(path)


def trained_with(workdir) -> dict:
    """The fingerprint of the data of the run in `workdir`, see `load`."""
    return _read(pathlib.Path(workdir) / "config.json")["data"]


def _read(path: pathlib.Path) -> dict:
    """What a config.json says of its run: its config, contract and data."""
    try:
        saved = safe_io.read_json(path)
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
    if saved["config"].get("task") == "pretrain":
        saved["config"].setdefault("method", "fusmae")  # the first there was
        saved["config"].setdefault("init_from", "")
        if saved["config"]["method"] == "fusmae":
            for name, later in LATER.items():
                group = saved["config"].get(name)
                if isinstance(group, dict):
                    saved["config"][name] = later | group
    there = saved.get("format", 1)  # the first runs did not say
    if there not in READS:
        raise InputError(
            f"{path} has format {there!r} and this version reads {list(READS)}; update "
            "fusmae_jax."
        )
    return saved


def remember_places(workdir, *codes: np.ndarray) -> None:
    """Keeps what `sources.place_codes` says of the training pairs, [N, 2] each.

    With it a later evaluation knows ground that was trained on, wherever the training
    data have gone.
    """
    path = pathlib.Path(workdir) / PLACES
    with cluster.together(f"write {path}"), writing():
        if jax.process_index() == 0 and not path.exists():
            content = io.BytesIO()
            kept = np.concatenate(codes)
            np.save(content, np.unique(kept[kept.any(axis=1)], axis=0))
            atomic.write_whole(path, content.getvalue())


def keeps_places(workdir) -> bool:
    """Whether the run in `workdir` says on which ground it was trained.

    Runs of before kept acquisitions alone, as do those on datasets of before.
    """
    known = places(workdir)
    return known is not None and bool(known[:, 0].all())


def trained_on(workdir, codes: np.ndarray) -> int:
    """How many pairs show what the run in `workdir` was trained on.

    Nothing is known of pairs without a place, nor of a run that kept none.

    Args:
        workdir: the run directory.
        codes: of the pairs, as `sources.place_codes` gives them, [N, 2].
    """
    known = places(workdir)
    if known is None:
        return 0
    return int((np.isin(codes, known) & (codes != 0)).any(axis=1).sum())


def places(workdir) -> np.ndarray | None:
    """What a run keeps of its training pairs, [M, 2]; 0 for ground not known.

    Raises:
        InputError: it cannot be read.
    """
    path = pathlib.Path(workdir) / PLACES
    if not path.exists():
        return None
    try:
        known = safe_io.read_array(path)
        if known.dtype == np.uint64 and known.ndim == 1:
            return np.stack([np.zeros_like(known), known], axis=1)
        if known.dtype != np.uint64 or known.shape[1:] != (2,):
            raise ValueError(f"it holds {known.dtype} {known.shape}")
        return known
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again.") from error


def settle_dtype(config, workdir, platform: str) -> ml_collections.ConfigDict:
    """A pretraining's config, in which `model.dtype` is "auto" no more.

    A run computes to its end in the type in which it began, wherever it goes on; a new
    one in what suits the devices of all hosts. The log says which, and why.

    Args:
        config: see `configs/pretrain_base.py`.
        workdir: the run directory, which need not exist.
        platform: of the devices, as JAX names it.

    Raises:
        InputError: what is there cannot be read.
    """
    if config.model.dtype != dtypes.AUTO:
        return config
    mine, began = dtypes.resolve_dtype(dtypes.AUTO, platform), None
    with cluster.together(f"read {workdir}"), writing():
        if jax.process_index() == 0:  # others may see its file earlier or later
            began = recorded_dtype(workdir)
    order = (None, *dtypes.DTYPES)
    heard = cluster.gather([order.index(began), order.index(mine)])
    began, best = order[heard[0, 0]], order[heard[:, 1].min()]
    if began:
        why = "as this run began"
    elif best == "bfloat16":
        why = f"which this {platform.upper()} has matrix instructions for"
    else:
        whose = "another host" if mine != best else f"this {platform.upper()}"
        why = f"as {whose} has no matrix instructions for bfloat16"
    end = "." if began else "; model.dtype overrules."
    log.info("Computing in %s, %s%s", began or best, why, end)
    config = config.copy_and_resolve_references()
    config.model.dtype = began or best
    return config


def recorded_dtype(workdir) -> str | None:
    """The type in which the pretraining in `workdir` computes; None if there is none.

    Raises:
        InputError: the description of what is there is damaged.
    """
    if not (pathlib.Path(workdir) / "config.json").exists():
        return None
    model = load(workdir)[0].to_dict().get("model")
    found = model.get("dtype") if isinstance(model, dict) else None
    return found if found in dtypes.DTYPES else None
