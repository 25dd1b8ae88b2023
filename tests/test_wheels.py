"""What is carried to a machine without a network, and what of it is unpacked there."""

import configparser
import importlib.metadata
import pathlib
import re
import zipfile

import pytest
from packaging import requirements

from benchmarks import wheels

PLACE = pathlib.Path(wheels.__file__).parent
# Imported only to read Parquet, and large.
LEFT_OUT = {"pyarrow"}


def listed() -> set[str]:
    """The packages that can be carried."""
    paths = [PLACE / "wheels.txt", PLACE / "wheels_more.txt"]
    lines = "".join(path.read_text() for path in paths)
    return set(map(wheels.normal, re.findall(r"^([\w.-]+)==", lines, re.M)))


def closure(asked: list[str]) -> set[str]:
    """These and all that they need, as far as it is installed here."""
    found, left = set(), [requirements.Requirement(line) for line in asked]
    while left:
        wanted = left.pop()
        name = wheels.normal(wanted.name)
        extras = wanted.extras or {""}
        if (name, *extras) in found:
            continue
        found.add((name, *extras))
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            needs = []
        for need in map(requirements.Requirement, needs):
            marker = need.marker
            if not marker or any(marker.evaluate({"extra": x}) for x in extras):
                left.append(need)
    return {name for name, *_ in found}


def test_all_that_the_project_needs_beyond_jax_can_be_carried():
    lines = wheels.asked(wheels.ROOT / "setup.cfg").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    needed = closure(lines) - closure(["jax"]) - LEFT_OUT
    assert needed <= listed()


def test_no_extra_asks_for_what_comes_anyway():
    setup = configparser.ConfigParser()
    setup.read(wheels.ROOT / "setup.cfg")
    plain = wheels.asked(wheels.ROOT / "setup.cfg").splitlines()
    plain = closure([line for line in plain if line and not line.startswith("#")])
    for name, lines in setup["options.extras_require"].items():
        wanted = [x for x in lines.splitlines() if x and not x.startswith("#")]
        extra = {wheels.normal(requirements.Requirement(x).name) for x in wanted}
        assert name in ("cuda13", "tpu") or not extra & plain, name


def wheel(folder: pathlib.Path, name: str, version: str, *needs: str) -> pathlib.Path:
    """Writes a wheel of one module and no more than it must have."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    lines = [f"Name: {name}", *(f"Requires-Dist: {need}" for need in needs)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines))
    return path


@pytest.fixture
def here(monkeypatch):
    """Versions of what is installed, by name."""
    versions = {}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_only_what_is_lacking_or_too_old_is_unpacked(tmp_path, here, capsys):
    here |= {"optax": "0.2.7.dev1", "flax": "99.0", "tqdm": "0.1"}
    for name in ("optax", "flax", "tqdm", "grain"):
        wheel(tmp_path / "wheels", name, "98.0")
    wheels.unpack(str(tmp_path / "wheels"), str(tmp_path / "site"))
    found = {path.name for path in (tmp_path / "site").glob("*.py")}
    assert found == {"optax.py", "grain.py"}
    assert "2 of 4 wheels unpacked: grain==98.0 optax==98.0" in capsys.readouterr().out


def test_what_a_chosen_wheel_needs_newer_is_chosen_too(tmp_path, here):
    here |= {"protobuf": "6.9.0", "tqdm": "4.0", "other-one": "1.0", "x": "1"}
    chosen = [
        wheel(tmp_path, "grain", "0.2.18", "protobuf<8,>=6.10", "tqdm >= 4.0"),
        wheel(tmp_path, "protobuf", "7.0", "other-one>=1.1", 'x>=2; extra == "x"'),
        wheel(tmp_path, "other_one", "2.0"),
    ]
    left = [wheel(tmp_path, "tqdm", "4.1"), wheel(tmp_path, "x", "3")]
    assert wheels.choose([*left, *chosen]) == chosen


def test_what_nobody_carries_is_told(tmp_path, here, capsys):
    wheels.choose([wheel(tmp_path, "grain", "0.2.18", "rich>=11.1")])
    assert "rich 11.1 or newer is needed, and is not" in capsys.readouterr().out
