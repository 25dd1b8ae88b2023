"""Carries Python packages to a machine without a network, as a folder of wheels.

    python benchmarks/wheels.py build wheels

downloads those of benchmarks/wheels.txt: what the project needs beyond an image that
has jax for GPUs, flax, optax, Orbax and matplotlib. For an image that has jax alone,
add benchmarks/wheels_more.txt to the command. They are for Python 3.12 on x86-64 Linux.

    python3 benchmarks/wheels.py unpack wheels SITE

unpacks those of them which this Python lacks, or of which setup.cfg asks for a newer
version than it has, into a folder for PYTHONPATH, and touches nothing else.
"""

import configparser
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
LIST = ROOT / "benchmarks" / "wheels.txt"
# Published as source alone, and plain Python.
SOURCES = ("promise",)
GLIBC = (28, 27, 24, 17)  # manylinux_2_N, of which pip wants each by name


def build(folder: str, *lists: str) -> None:
    """Downloads the wheels of the lists."""
    lines = [x for path in (LIST, *lists) for x in pathlib.Path(path).open()]
    wanted = [x.strip() for x in lines if x.strip() and not x.startswith("#")]
    sources = [x for x in wanted if x.split("==")[0] in SOURCES]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in GLIBC]
    options = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "-d"]
    binary = [x for x in wanted if x not in sources]
    run = lambda *args: subprocess.run([*pip, *args], check=True)
    run("download", "-q", *options, folder, *platforms, *binary)
    if sources:
        run("wheel", "-q", "--no-deps", "-w", folder, *sources)
    found = list(pathlib.Path(folder).glob("*.whl"))
    size = sum(path.stat().st_size for path in found)
    print(f"{len(found)} wheels in {folder}, {size / 1e6:.1f} MB")


def normal(name: str) -> str:
    """A package's name as it is compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def number(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with."""
    return tuple(map(int, re.match(r"[\d.]*\d", version)[0].split(".")))


def installed(name: str) -> tuple[int, ...] | None:
    try:
        return number(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return None


def asked(path: pathlib.Path) -> str:
    """What a wheel, or else setup.cfg, says that it needs, a package a line."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            name = next(x for x in names if x.endswith(".dist-info/METADATA"))
            text = archive.read(name).decode()
        return "\n".join(re.findall(r"^Requires-Dist: (.*)$", text, re.M))
    config = configparser.ConfigParser()
    config.read(path)
    return config["options"]["install_requires"]


def oldest(paths: list[pathlib.Path]) -> dict[str, tuple[int, ...]]:
    """The oldest versions that all of these allow, by package, extras left out."""
    found = {}
    for path in paths:
        for line in asked(path).splitlines():
            match = re.match(r"([\w.-]+)[^;]*?>= ?([\d.]+)[^;]*$", line)
            if match:
                name = normal(match[1])
                found[name] = max(found.get(name, ()), number(match[2]))
    return found


def choose(wheels: list[pathlib.Path]) -> list[pathlib.Path]:
    """The wheels of packages that this Python lacks, or has too old ones of.

    Too old for the project, or for another wheel that is chosen.
    """
    chosen, before = [], None
    while chosen != before:
        least, before, chosen = oldest([ROOT / "setup.cfg", *chosen]), chosen, []
        for path in wheels:
            name = normal(path.name.split("-")[0])
            here = installed(name)
            if here is None or here < least.get(name, ()):
                chosen.append(path)
    carried = {normal(path.name.split("-")[0]) for path in chosen}
    for name, version in least.items():
        here = installed(name)
        if name not in carried and (here is None or here < version):
            wanted = ".".join(map(str, version))
            print(f"{name} {wanted} or newer is needed, and is not in the folder.")
    return chosen


def unpack(folder: str, site: str) -> None:
    """Unpacks what this Python lacks."""
    wheels = sorted(pathlib.Path(folder).glob("*.whl"))
    chosen = choose(wheels)
    for path in chosen:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(site)
    names = " ".join("==".join(path.name.split("-")[:2]) for path in chosen)
    print(f"{len(chosen)} of {len(wheels)} wheels unpacked: {names}")


if __name__ == "__main__":
    {"build": build, "unpack": unpack}[sys.argv[1]](*sys.argv[2:])
