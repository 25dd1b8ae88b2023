"""The run directory: what it says about itself, and whether it may be continued."""

import importlib.metadata
import json

import jax
import ml_collections
from etils import epath

from data_pipeline.errors import InputError
from fusmae_jax import build

# These say how a run is carried out; all others say what its steps mean.
FREE = (
    "fsdp",
    "fsdp_min_size",
    "log_every",
    "eval_every",
    "eval_pairs",
    "figure_pairs",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "accumulate",
    "data.dir",
    "data.threads",
    "data.workers",
)
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


def differences(old: dict, new: dict) -> list[str]:
    """Names the fields in which two configs mean different steps."""
    old, new = flatten(old), flatten(new)
    return [
        f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)"
        for key in sorted(old.keys() | new.keys())
        if key not in FREE and old.get(key) != new.get(key)
    ]


def open_workdir(workdir, config: ml_collections.ConfigDict, data: dict) -> bool:
    """Makes `workdir` this run's, or checks that it already is.

    Args:
        workdir: the run directory.
        config: the resolved config.
        data: the dataset's fingerprint.

    Returns:
        Whether the directory held this run already.

    Raises:
        InputError: it holds another run or something else; nothing is touched.
    """
    workdir = epath.Path(workdir)
    path = workdir / "config.json"
    if path.exists():
        saved = json.loads(path.read_text())
        fields = differences(saved["config"], config.to_dict())
        fields += differences({"dataset": saved["data"]}, {"dataset": data})
        if fields:
            raise InputError(
                f"{workdir} holds another run, which differs in {', '.join(fields)}; "
                "choose another --workdir, or launch with that run's values."
            )
        return True
    aside = workdir / "config.json.part"
    # Host 0 may be writing these while another host looks, or was killed doing so.
    ours = {path.name, aside.name}
    if workdir.exists() and (
        not workdir.is_dir() or any(p.name not in ours for p in workdir.iterdir())
    ):
        raise InputError(
            f"{workdir} is not empty and holds no run (no config.json); choose "
            "another --workdir."
        )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        description = {
            "config": config.to_dict(),
            "contract": {s: c.describe() for s, c in build.contract(config).items()},
            "data": data,
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        aside.write_text(json.dumps(description, indent=2) + "\n")
        aside.rename(path)
    return False


def load_config(workdir) -> ml_collections.ConfigDict:
    """The config of the run in `workdir`.

    Raises:
        InputError: there is no run.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(
            f"{workdir} holds no run (no config.json); name a run's directory, as "
            "--workdir made it."
        )
    saved = json.loads(path.read_text())["config"]
    return ml_collections.ConfigDict(saved).lock()
