"""What a config may say: type, range and meaning of every field, declared once.

A table holds a `Field` for each of a config's fields by its dotted name:

    {"mask.ratio": number(above=0, below=1, meaning="Share of patches hidden.")}

From it come the check, the errors and what `launch.py --explain` prints. Nothing is
looked up but the config: what a table refuses is refused before a file or a device is
touched.
"""

import dataclasses
import difflib
import functools
import itertools
import math
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from data_pipeline import atomic
from data_pipeline.errors import InputError

MOST = 2**31 - 1  # steps and sizes are counted in 32 bits
SHOWN = 80  # characters of a value that an error repeats


@dataclasses.dataclass(frozen=True)
class Field:
    """What one field may hold, and what it means.

    Attributes:
        what: it must be, in words.
        fits: whether a value is that; never raises.
        meaning: a sentence, with the unit; empty for what is only part of a field.
        choices: the texts to choose from, where there are only some.
        spell: what makes texts that mean the same choice alike.
        optional: whether a config may lack the field.
        resolve: makes of a value what its readers get, see `resolve`.
    """

    what: str
    fits: Callable[[Any], bool]
    meaning: str = ""
    choices: tuple[str, ...] = ()
    spell: Callable[[str], str] = str.lower
    optional: bool = False
    resolve: Callable[[Any], Any] = lambda value: value


def whole(least: int, most: int = MOST, *, meaning: str = "") -> Field:
    """A whole number from `least` to `most`."""

    def fits(value) -> bool:
        return _is_whole(value) and least <= value <= most

    limit = "" if most == MOST else f" and at most {most}"
    return Field(f"a whole number of at least {least}{limit}", fits, meaning)


def seed(meaning: str = "") -> Field:
    """A seed of random numbers."""
    return whole(0, 2**32 - 1, meaning=meaning)


def number(
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    meaning: str = "",
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
    finite = [f"{word} {limit:g}" for word, limit in limits if math.isfinite(limit)]
    what = " ".join(["a number", " and ".join(finite) or "that is finite"])
    return Field(what, fits, meaning)


def flag(*, meaning: str = "") -> Field:
    """True or False."""
    return Field("True or False", lambda value: isinstance(value, bool), meaning)


def text(*, filled: bool = False, lines: bool = False, meaning: str = "") -> Field:
    """A text; with `filled` not an empty one, with `lines` of several lines too."""

    def fits(value) -> bool:
        if not isinstance(value, str) or (filled and not value.strip()):
            return False
        return (value.replace("\n", "") if lines else value).isprintable()

    return Field("a text that is not empty" if filled else "a text", fits, meaning)


def location(*, filled: bool = False, many: bool = False, meaning: str = "") -> Field:
    """Where a file or folder is; with `many` perhaps several, with commas between."""
    written = text(filled=filled)

    def fits(value) -> bool:
        return written.fits(value) and "://" not in value

    what = "a path on a file system, to which an object store can be mounted"
    if many:  # for their reader to take apart
        return Field(what, fits, meaning)
    return Field(what, fits, meaning, resolve=atomic.absolute)


def choice(
    *names: str, spell: Callable[[str], str] = str.lower, meaning: str = ""
) -> Field:
    """One of some texts."""

    def fits(value) -> bool:
        return isinstance(value, str) and value in names

    return Field(f"one of {list(names)}", fits, meaning, names, spell)


def several(
    each: Field,
    *,
    least: int = 0,
    length: int | None = None,
    twice: bool = False,
    meaning: str = "",
) -> Field:
    """A tuple.

    Args:
        each: what every value of it may be.
        least: how many there are at least.
        length: how many there must be, if that is settled.
        twice: whether a value may come more than once.
        meaning: of all; where there is none, that of each.
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
    meaning = meaning or each.meaning
    return Field(what, fits, meaning, each.choices, each.spell, resolve=resolve)


def group(*, meaning: str = "") -> Field:
    """Fields of their own, perhaps none; their rows are in the table, too."""
    return Field("a group of fields", _is_group, meaning)


def optional(rows: Mapping[str, Field]) -> dict[str, Field]:
    """The same rows, of fields that a config may lack."""
    return {k: dataclasses.replace(v, optional=True) for k, v in rows.items()}


def within(name: str, rows: Mapping[str, Field]) -> dict[str, Field]:
    """The rows of the group `name`."""
    return {f"{name}.{key}": row for key, row in rows.items()}


def attribute(row: Field, default=dataclasses.MISSING):
    """An attribute of a dataclass that is declared as a config's fields are."""
    return dataclasses.field(default=default, metadata={"row": row})


def rows_of(kind: type) -> dict[str, Field]:
    """The rows of a dataclass's attributes, those that are declared with one."""
    found = dataclasses.fields(kind)
    return {x.name: x.metadata["row"] for x in found if "row" in x.metadata}


def check_attributes(thing) -> None:
    """Refuses a dataclass whose attributes do not fit their rows.

    Raises:
        InputError: names the attribute, its value, and what it must be.
    """
    for name, row in rows_of(type(thing)).items():
        check_value(name, getattr(thing, name), row)


def always(table: Mapping[str, Field]) -> Callable[[Any], Mapping[str, Field]]:
    """The `fields` of a task all of whose configs have those of one table."""
    return lambda config: table


def check(config, table: Mapping[str, Field], like: str) -> None:
    """Refuses a config that says anything else than its table allows.

    Args:
        config: nested fields, as in `ml_collections.ConfigDict`.
        table: what every field may hold; a field without a row is unknown.
        like: the config file that has all fields.

    Raises:
        InputError: a field is unknown, missing, of another type or out of range.
    """
    _check_names(config, table, groups(table), "")
    for name, row in table.items():
        found, value = find(config, name)
        if found:
            check_value(name, value, row)
        elif not row.optional:
            raise InputError(
                f"The config has no field {name}; give it {row.what}, as {like} does."
            )


def check_override(name: str, value: str, table: Mapping[str, Field]) -> None:
    """Refuses a field of a command line that its config file cannot take.

    Args:
        name: of the field.
        value: as it was passed, which is no value of the field's type; or anything,
            where the config file has no such field.
        table: what every field may hold.

    Raises:
        InputError: the field is unknown, is a group, or must be something else.
    """
    _check_name(name, value, table, groups(table))
    if name in table and not table[name].fits(value):
        check_value(name, value, table[name])
    raise InputError(f"The config file has no field {name} to change; add it there.")


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
    wrong = f"{name} is {show(value)}"
    if row.choices:
        many = not row.fits(row.choices[0])
        given = value if isinstance(value, tuple | list) else (value,)
        others = [x for x in given if isinstance(x, str) and x not in row.choices]
        near = nearest(others, row.choices, row.spell)
        hint = f" (did you mean {near!r}?)" if near else ""
        hint = f", such as {show((value,))}" if row.fits((value,)) else hint
        must = f"it must be {row.what}" if many else f"choose {row.what}"
        raise InputError(f"{wrong}; {must}{hint}.")
    example = f", such as {show((value,))}" if row.fits((value,)) else ""
    raise InputError(f"{wrong}; it must be {row.what}{example}.")


def check_rules(config, rules: Iterable[tuple[Callable[[Any], bool], str]]) -> None:
    """Refuses fields that contradict each other.

    Args:
        config: of which each field alone fits its row.
        rules: what must hold of it, and what is said where it does not; the sentence
            names fields as {c.model.dim}.

    Raises:
        InputError: the sentence of the first rule that does not hold.
    """
    for holds, sentence in rules:
        if not holds(config):
            raise InputError(sentence.format(c=config))


def ask(config, *calls: tuple) -> None:
    """Lets those judge that will be given the values.

    Args:
        config: of which each field alone fits its row.
        *calls: each a function that may raise an InputError, and the names of the
            fields that it is called with.

    Raises:
        InputError: what the function said, behind the fields and their values.
    """
    for function, *names in calls:
        values = [find(config, name)[1] for name in names]
        try:
            function(*values)
        except InputError as error:
            given = ", ".join(f"{n}={show(v)}" for n, v in zip(names, values))
            raise InputError(f"{given}: {error}") from error


def explain(config, table: Mapping[str, Field], width: int) -> str:
    """Every field of a config with its value, its meaning and its range.

    Args:
        config: of which `table` knows the fields.
        table: what every field may hold, and means.
        width: columns of the text; less than some 60 are not used.
    """
    groups, values = {"": []}, {}
    for name, row in table.items():
        found, value = find(config, name)
        if found and row.fits is not _is_group:
            place, _, key = name.rpartition(".")
            values[name] = show(value, limit=sys.maxsize)
            groups.setdefault(place, []).append((key, values[name], row))
    first = max(len(key) for rows in groups.values() for key, *_ in rows)
    second = min(max(map(len, values.values())), width // 4)
    third = max(width - first - second - 6, 20)
    lines = []
    for place, rows in groups.items():
        title = table[place].meaning if place in table else ""
        lines += ["", *textwrap.wrap(f"{place}: {title}", width)] if title else []
        lines += ["", f"{place}:"] if place and not title else []
        for key, value, row in rows:
            about = f"{row.meaning} {row.what[0].upper()}{row.what[1:]}."
            cells = textwrap.wrap(value, second), textwrap.wrap(about, third)
            for k, v, text in itertools.zip_longest([key], *cells, fillvalue=""):
                lines.append(f"  {k:{first}}  {v:{second}}  {text}".rstrip())
    return "\n".join(lines)


def nearest(
    names: Iterable[str], known: Iterable[str], spell: Callable[[str], str] = str.lower
) -> str | None:
    """What is spelt most like the first of the names for which there is anything."""
    spelt = {spell(name): name for name in known}
    for name in names:
        if found := difflib.get_close_matches(spell(name), spelt, 1):
            return spelt[found[0]]
    return None


def show(value, limit: int = SHOWN) -> str:
    """A value as an error repeats it: in one line, of at most `limit` characters."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whole numbers of thousands of digits have none
        return f"an {type(value).__name__} that cannot be printed"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _is_whole(value) -> bool:
    # True is an int to Python, and to nobody else.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_group(value) -> bool:
    return hasattr(value, "keys") and hasattr(value, "items")


def groups(table: Mapping[str, Field]) -> set[str]:
    """Names of the groups that a table's fields are in."""
    places = {name[:i] for name in table for i, c in enumerate(name) if c == "."}
    return places | {name for name, row in table.items() if row.fits is _is_group}


def _check_names(
    config, table: Mapping[str, Field], groups: Collection[str], prefix: str
) -> None:
    """Refuses fields without a row, and groups that are none."""
    for key in config.keys():
        name = f"{prefix}{key}"
        _check_name(name, config[key], table, groups)
        if name in groups:
            _check_names(config[key], table, groups, f"{name}.")


def _check_name(
    name: str, value, table: Mapping[str, Field], groups: Collection[str]
) -> None:
    if name not in groups and name not in table:
        raise InputError(f"The config has no use for {name}; {_hint(name, table)}")
    if name in groups and not _is_group(value):
        inside = [k for k in table if k.startswith(f"{name}.")]
        raise InputError(
            f"{name} is {show(value)}; it must be a group of the fields "
            f"{', '.join(inside)}."
        )


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
        if not _is_group(config) or part not in config:
            return False, None
        config = config[part]
    return True, config
