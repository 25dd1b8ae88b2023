"""What the config of a build may say; refused before an archive is searched."""

import importlib
import types

from data_pipeline import atomic as files, fields, record_format as shards, rules
from data_pipeline.building import splits
from data_pipeline.fields import Field, choice, flag, group, location, several
from data_pipeline.fields import text, whole

ARCHIVES = (
    *("bigearthnet_v1", "bigearthnet_v2", "sen12ms", "ssl4eo", "so2sat"),
    "geotiff_pairs",
)

TABLE = {
    "task": choice("prepare"),
    "archive": choice(*ARCHIVES),
    "source": location(),
    "out": location(),
    "splits": location(),
    "holdout_tiles": several(text(filled=True)),
    "holdout_share": splits.SHARE,
    "exclude": several(location(filled=True)),
    "pairs_per_shard": whole(1),
    "workers": whole(0, 4096),
    "strict": flag(),
    "check_values": flag(),
    "compression": choice(*shards.COMPRESSION),
    "scratch": location(),
    "runner": text(),
    "runner_options": several(text(filled=True)),
    "read": group(),  # SETTINGS of the archive's module
}

# What must hold between fields, and what is said where it does not.
RULES = (
    (
        lambda c: c.source and c.out,
        "Pass --config.source=DIR, where the archive is, and --config.out=DIR, the "
        "folder to build in.",
    ),
    (
        lambda c: _differ(c.source, c.out, c.scratch),
        "source={c.source}, out={c.out} and scratch={c.scratch} must be different "
        "folders; the archive stays as it is, and scratch is emptied.",
    ),
    (
        lambda c: "," not in c.out and c.out == c.out.strip(),
        "out is {c.out!r}; it must have no comma in it and no space at its ends, which "
        "data.dir has between folders.",
    ),
    (
        lambda c: c.runner or not c.runner_options,
        "runner_options is {c.runner_options}, and there is no runner to take them; "
        "set --config.runner too.",
    ),
    (
        lambda c: all(option.startswith("--") for option in c.runner_options),
        "runner_options is {c.runner_options}; each must begin with two dashes, as "
        "'--flink_master=HOST:8081' does.",
    ),
)


def _differ(*paths: str) -> bool:
    """Whether those that are not empty are different places."""
    places = [files.absolute(path) for path in paths if path]
    return len(set(places)) == len(places)


def reader(archive: str) -> types.ModuleType:
    """The module that reads an archive."""
    return importlib.import_module(f"data_pipeline.archives.{archive}")


def table(archive: str) -> dict[str, Field]:
    """What each field may hold in a config that reads an archive."""
    settings = getattr(reader(archive), "SETTINGS", {})  # some archives need none
    return TABLE | fields.within("read", settings)


def check_config(config) -> None:
    """Refuses what cannot work whatever the archive holds.

    Raises:
        InputError: names the fields and their values.
    """
    archive = config.get("archive")
    fields.check_value("archive", archive, TABLE["archive"])
    like = f"the config of configs/ that reads {archive}"
    fields.check(config, table(archive), like=like)
    rules.check(config, RULES)
    splits.check_ways(config)
