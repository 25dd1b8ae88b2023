"""What a config may say: a type and a range for every field.

A table holds a `Field` for each of a config's fields by its dotted name, such as
{"epochs": whole(1), "mask.ratio": number(above=0, below=1)}. Nothing is looked up but
the config: what a table refuses is refused before a file or a device is touched.
"""

import dataclasses
import difflib
import functools
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from data_pipeline import atomic as files
from data_pipeline.errors import InputError

MOST = 2**31 - 1  # steps and sizes are counted in 32 bits
SHOWN = 80  # characters of a value that an error repeats


@dataclasses.dataclass(frozen=True)
class Field:
    """What one field may hold.

    Attributes:
        what: it must be, in words.
        fits: whether a value is that; never raises.
        choices: the texts to choose from, where there are only some.
        spell: what makes texts that mean the same choice alike.
        optional: whether a config may lack the field.
        resolve: makes of a value what its readers get, see `resolve`.
    """

    what: str
    fits: Callable[[Any], bool]
    choices: tuple[str, ...] = ()
    spell: Callable[[str], str] = str.lower
    optional: bool = False
    resolve: Callable[[Any], Any] = lambda value: value


def whole(least: int, most: int = MOST) -> Field:
    """A whole number from `least` to `most`."""

    def fits(value) -> bool:
        return _is_whole(value) and least <= value <= most

    limit = "" if most == MOST else f" and at most {most}"
    return Field(f"a whole number of at least {least}{limit}", fits)


SEED = whole(0, 2**32 - 1)


def number(
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> Field:
    """A finite number within limits, whole or not."""

    def fits(value) -> bool:
        if not (isinstance(value, float) or _is_whole(value)):
            return False
        if not -sys.float_info.max <= value <= sys.float_info.max:
            return False
        return least <= value <= most and above < value < below

    limits = (
        ("of at least", least),
        ("above", above),
        ("of at most", most),
        ("below", below),
    )
    said = [f"{word} {limit:g}" for word, limit in limits if math.isfinite(limit)]
    return Field(" ".join(["a number", " and ".join(said) or "that is finite"]), fits)


def flag() -> Field:
    """True or False."""
    return Field("True or False", lambda value: isinstance(value, bool))


def text(*, filled: bool = False, lines: bool = False) -> Field:
    """A text; with `filled` not an empty one, with `lines` of several lines too."""

    def fits(value) -> bool:
        if not isinstance(value, str) or (filled and not value.strip()):
            return False
        return (value.replace("\n", "") if lines else value).isprintable()

    return Field("a text that is not empty" if filled else "a text", fits)


def location(*, filled: bool = False, many: bool = False) -> Field:
    """Where a file or folder is; with `many` perhaps several, with commas between."""
    written = text(filled=filled)

    def fits(value) -> bool:
        return written.fits(value) and "://" not in value

    what = "a path on a file system, to which an object store can be mounted"
    # Several are for their reader to take apart.
    return Field(what, fits) if many else Field(what, fits, resolve=files.absolute)


def choice(*names: str, spell: Callable[[str], str] = str.lower) -> Field:
    """One of some texts."""

    def fits(value) -> bool:
        return isinstance(value, str) and value in names

    return Field(f"one of {list(names)}", fits, names, spell)


def several(
    each: Field, *, least: int = 0, length: int | None = None, twice: bool = False
) -> Field:
    """A tuple.

    Args:
        each: what every value of it may be.
        least: how many there are at least.
        length: how many there must be, if that is settled.
        twice: whether a value may come more than once.
    """

    def fits(value) -> bool:
        if not isinstance(value, tuple) or not all(map(each.fits, value)):
            return False
        if not twice and len(set(value)) < len(value):
            return False
        return len(value) >= least if length is None else len(value) == length

    count = f" of {length}" if length else f" of at least {least}" if least else ""
    once = "" if twice else ", none of them twice"
    what = f"a tuple{count}, each {each.what}{once}"
    resolve = lambda values: tuple(map(each.resolve, values))
    return Field(what, fits, each.choices, each.spell, resolve=resolve)


def group() -> Field:
    """Fields of their own, perhaps none; their rows are in the table, too."""
    return Field("a group of fields", _is_group)


def optional(rows: Mapping[str, Field]) -> dict[str, Field]:
    """The same rows, of fields that a config may lack."""
    return {k: dataclasses.replace(v, optional=True) for k, v in rows.items()}


def within(name: str, rows: Mapping[str, Field]) -> dict[str, Field]:
    """The rows of the group `name`."""
    return {f"{name}.{key}": row for key, row in rows.items()}


def check(config, table: Mapping[str, Field], like: str) -> None:
    """Refuses a config that says anything else than its table allows.

    Args:
        config: nested fields, as in `ml_collections.ConfigDict`.
        table: what every field may hold; a field without a row is unknown.
        like: the config file that has all fields.

    Raises:
        InputError: a field is unknown, missing, of another type or out of range.
    """
    groups = {name[:i] for name in table for i, c in enumerate(name) if c == "."}
    groups |= {name for name, row in table.items() if row.fits is _is_group}
    _check_names(config, table, groups, "")
    for name, row in table.items():
        found, value = find(config, name)
        if found:
            check_value(name, value, row)
        elif not row.optional:
            raise InputError(
                f"The config has no field {name}; give it {row.what}, as {like} does."
            )


def resolve(config, table: Mapping[str, Field]):
    """A copy of a config that `table` allows, in which paths are absolute."""
    config = config.copy_and_resolve_references()
    for name, row in table.items():
        *groups, key = name.split(".")
        found, value = find(config, name)
        if found:
            place = functools.reduce(getattr, groups, config)
            place[key] = row.resolve(value)
    return config


def check_value(name: str, value, row: Field) -> None:
    """Refuses a value that does not fit.

    Raises:
        InputError: names the field, its value, and what it must be.
    """
    if row.fits(value):
        return
    said = f"{name} is {show(value)}"
    if row.choices:
        many = not row.fits(row.choices[0])
        given = value if isinstance(value, tuple | list) else (value,)
        wrong = [x for x in given if isinstance(x, str) and x not in row.choices]
        near = nearest(wrong, row.choices, row.spell)
        hint = f" (did you mean {near!r}?)" if near else ""
        hint = f", such as {show((value,))}" if row.fits((value,)) else hint
        must = f"it must be {row.what}" if many else f"choose {row.what}"
        raise InputError(f"{said}; {must}{hint}.")
    example = f", such as {show((value,))}" if row.fits((value,)) else ""
    raise InputError(f"{said}; it must be {row.what}{example}.")


def check_each(name: str, values: Mapping, rows: Mapping[str, Field]) -> None:
    """Refuses values of the group `name` that do not fit their rows.

    Raises:
        InputError: names the field, its value, and what it must be.
    """
    for key, row in rows.items():
        check_value(f"{name}.{key}", values[key], row)


def nearest(
    names: Iterable[str], known: Iterable[str], spell: Callable[[str], str] = str.lower
) -> str | None:
    """What is spelt most like the first of the names for which there is anything."""
    spelt = {spell(name): name for name in known}
    for name in names:
        if found := difflib.get_close_matches(spell(name), spelt, 1):
            return spelt[found[0]]
    return None


def show(value) -> str:
    """A value as an error repeats it: in one line, and not too long."""
    try:
        said = " ".join(repr(value).split())
    except Exception:  # whole numbers of thousands of digits have none
        return f"an {type(value).__name__} that cannot be printed"
    return said if len(said) <= SHOWN else f"{said[: SHOWN - 3]}..."


def _is_whole(value) -> bool:
    # True is an int to Python, and to nobody else.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_group(value) -> bool:
    return hasattr(value, "keys") and hasattr(value, "items")


def _check_names(
    config, table: Mapping[str, Field], groups: Collection[str], prefix: str
) -> None:
    """Refuses fields without a row, and groups that are none."""
    for key in config.keys():
        name = f"{prefix}{key}"
        if name not in groups and name not in table:
            raise InputError(f"The config has no use for {name}; {_hint(name, table)}")
        if name not in groups:
            continue
        if not _is_group(config[key]):
            inside = [k for k in table if k.startswith(f"{name}.")]
            raise InputError(
                f"{name} is {show(config[key])}; it must be a group of the fields "
                f"{', '.join(inside)}."
            )
        _check_names(config[key], table, groups, f"{name}.")


def _hint(name: str, table: Mapping[str, Field]) -> str:
    """What an unknown field may have meant."""
    place, _, key = name.rpartition(".")
    beside = {k.rpartition(".")[2]: k for k in table if k.rpartition(".")[0] == place}
    anywhere = {k.rpartition(".")[2]: k for k in table}
    for known in (beside, anywhere):
        if near := nearest([key], known):
            return f"did you mean {known[near]}?"
    return "take it out."


def find(config, name: str) -> tuple[bool, Any]:
    """Whether a config has the field `name`, and its value."""
    for part in name.split("."):
        if part not in config:
            return False, None
        config = config[part]
    return True, config
