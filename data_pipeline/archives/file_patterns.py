"""Images found by a pattern of their paths, such as "{label}/{id}.tif".

A placeholder stands for a part of a path or a piece of one, and is what it says of the
image: {id}, {tile}, {label}, {split}. Where it occurs again, it stands for the same
text. `*` stands for anything within a part, as much as it can. As in a shell, neither
begins with the dot of a hidden file.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from data_pipeline import sensors
from data_pipeline.archives import rasters
from data_pipeline.config_fields import Field
from data_pipeline.dataset_card import SPLITS, split_name
from data_pipeline.errors import InputError

PLACEHOLDERS = ("id", "tile", "label", "split")
# How files end that can be an image of a sensor, which a folder can be too, or a mask.
ENDINGS = dict.fromkeys(sensors.SENSORS, tuple(rasters.DRIVERS))
ENDINGS |= {"mask": (".tif", ".tiff", ".png")}

_NAME = re.compile(r"\{(" + "|".join(PLACEHOLDERS) + r")\}")
_PIECE = re.compile(r"(\{\w+\}|\*)")
_SHOWN = 3  # of many names, in errors


class File(NamedTuple):
    """A file or folder that matches, and the text of each placeholder in its path."""

    path: str
    values: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of one sensor, or the masks.

    Attributes:
        root: the folder that the pattern begins in.
        pattern: of their paths.
        files: those that match, by path.
    """

    root: str
    pattern: str
    files: list[File]

    @property
    def names(self) -> tuple[str, ...]:
        """The placeholders, in their order."""
        return tuple(dict.fromkeys(_NAME.findall(self.pattern)))

    def path(self, values: Mapping[str, str]) -> str:
        """Where an image should be; placeholders without value stay."""
        below = _NAME.sub(lambda name: values.get(name[1], name[0]), self.pattern)
        return os.path.join(self.root, below)


def field(meaning: str) -> Field:
    """What a config may say of a pattern."""
    what = (
        "empty, or a path below the source, without / at its ends, of {id} and "
        "perhaps {tile}, {label}, {split} and *, such as {label}/{id}.tif"
    )
    return Field(what, _is_pattern, meaning)


def _is_pattern(value) -> bool:
    if not isinstance(value, str) or not value.isprintable():
        return False
    if not value:
        return True
    fixed = _NAME.sub("x", value)
    wrong = set("{}") & set(fixed) or {"", ".", ".."} & set(fixed.split("/"))
    return "{id}" in value and "**" not in value and not wrong


def given(read) -> dict[str, str]:
    """The patterns of a config's `read`, of each sensor and the "mask"."""
    patterns = {name: read[f"{name}_files"] for name in ENDINGS}
    return {name: text for name, text in patterns.items() if text}


def is_image(entry: os.DirEntry, name: str) -> bool:
    """Whether an entry of a folder can be an image of a sensor, or a "mask"."""
    if entry.name.lower().endswith(ENDINGS[name]):
        return True
    return name in sensors.SENSORS and entry.is_dir()


def find(root: str, patterns: Mapping[str, str]) -> dict[str, Images]:
    """What matches the pattern of each sensor and of the "mask".

    Each folder is listed once, as deep as the patterns are, and links are followed.

    Raises:
        InputError: nothing matches one of them, a path can be read in two ways, or a
            split has a name of its own.
    """
    if not set(patterns) & set(sensors.SENSORS):
        raise InputError(
            "read.mask_files is given alone; set read.s1_files or read.s2_files too, "
            "the images that the masks belong to."
        )
    if not os.path.isdir(root):
        raise InputError(
            f"{root} is not a folder; pass as source=DIR the one that the "
            "patterns of read.s1_files, read.s2_files and read.mask_files begin in."
        )
    search = _Search(root, {n: _Pattern(text) for n, text in patterns.items()})
    search.walk("", tuple(patterns))
    for name, files in search.found.items():
        if not files:
            raise InputError(search.nothing(name))
        splits = {file.values.get("split", SPLITS[0]) for file in files}
        if {split_name(split) for split in splits} - set(SPLITS):
            raise InputError(
                f"{_setting(name, patterns[name])} finds the splits {some(splits)}; "
                f"{{split}} must be {', '.join(SPLITS)} or val, so rename the folders, "
                "or write * in its place."
            )
    return {name: Images(root, patterns[name], search.found[name]) for name in patterns}


@dataclasses.dataclass(frozen=True)
class _Pattern:
    text: str

    @property
    def parts(self) -> list[str]:
        return self.text.split("/")

    @functools.cached_property
    def greedy(self) -> list[re.Pattern]:
        """What the first part of a path matches, the first two, and so on."""
        return self._expressions("")

    @functools.cached_property
    def modest(self) -> list[re.Pattern]:
        """The same, with as little as possible for each placeholder."""
        return self._expressions("?")

    def _expressions(self, least: str) -> list[re.Pattern]:
        whole, seen, found = [], set(), []
        for part in self.parts:
            written = r"(?!\.)" if part[0] in "{*" else ""
            for piece in _PIECE.split(part):
                name = _NAME.fullmatch(piece)
                if piece == "*":
                    written += "[^/]*"
                elif not name:
                    written += re.escape(piece)
                elif name[1] in seen:
                    written += f"(?P={name[1]})"
                else:
                    written += f"(?P<{name[1]}>[^/]+{least})"
                    seen.add(name[1])
            whole.append(written)
            found.append(re.compile("/".join(whole)))
        return found


class _Search:
    """A walk through the folders that any of the patterns leads into.

    Attributes:
        found: what matches each pattern.
        reached: the first of the deepest folders that each leads into.
    """

    def __init__(self, root: str, patterns: Mapping[str, _Pattern]):
        self.root, self.patterns = root, patterns
        self.found = {name: [] for name in patterns}
        self.reached = dict.fromkeys(patterns, "")

    def walk(self, below: str, names: tuple[str, ...]) -> None:
        """Searches the folder `below` the root for the patterns of `names`.

        The kind of an entry comes with the listing: a million files take no stat.
        """
        depth = below.count("/")
        for name in names:
            if depth > self.reached[name].count("/"):
                self.reached[name] = below
        for entry in entries(os.path.join(self.root, below)):
            path, inside = below + entry.name, []
            for name in names:
                pattern = self.patterns[name]
                match = pattern.greedy[depth].fullmatch(path)
                if match and depth + 1 < len(pattern.parts):
                    inside.append(name)
                elif match and is_image(entry, name):
                    values = match.groupdict()
                    self._check(name, path, values)
                    self.found[name].append(File(entry.path, values))
            if inside and entry.is_dir():
                self.walk(f"{path}/", tuple(inside))

    def _check(self, name: str, path: str, values: Mapping[str, str]) -> None:
        """Refuses a path that could be read otherwise."""
        pattern = self.patterns[name]
        other = pattern.modest[-1].fullmatch(path).groupdict()
        if differing := [key for key in values if values[key] != other[key]]:
            key = differing[0]
            raise InputError(
                f"{_setting(name, pattern.text)} leaves open whether {{{key}}} of "
                f"{path} is {other[key]!r} or {values[key]!r}; write more of the names "
                "into the pattern, or pass a CSV."
            )

    def nothing(self, name: str) -> str:
        """A sentence on a pattern that nothing matches, and on what there is."""
        folder = os.path.join(self.root, self.reached[name])
        there = [entry.name for entry in entries(folder)]
        kinds = ", ".join(ENDINGS[name])
        kinds += " or folder" if name in sensors.SENSORS else ""
        return (
            f"{_setting(name, self.patterns[name].text)} matches no {kinds} below "
            f"{self.root}; correct it, {folder} holds {some(there) or 'nothing'}."
        )


def entries(folder: str) -> list[os.DirEntry]:
    """What is in a folder, by name."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _setting(name: str, pattern: str) -> str:
    return f"read.{name}_files={pattern!r}"


def some(names: Iterable[str]) -> str:
    """The first names, and how many others there are."""
    names = sorted(names)
    left = len(names) - _SHOWN
    others = [f"{left} more"] if left > 0 else []
    return ", ".join([*map(repr, names[:_SHOWN]), *others])
