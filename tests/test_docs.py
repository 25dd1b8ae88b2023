"""Documents name only what exists: files, headings, configs, fields of configs."""

import configparser
import importlib
import pathlib
import re

import pytest
import yaml

from fusmae_jax.training import run_directory

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
CONFIGS = {path.stem for path in ROOT.glob("configs/*.py")}


def read(document):
    return (ROOT / document).read_text(encoding="utf-8")


def anchors(text):
    """The anchors of a document's headings, as Git hosts make them."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)  # where # begins comments
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def fields_of(config):
    module = importlib.import_module(f"configs.{config}")
    flat = run_directory.flatten(module.get_config().to_dict())
    return {".".join(name.split(".")[:n]) for name in flat for n in (1, 2, 3)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", read(document)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / document).parent / name if name else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document):
    folders = "benchmarks|configs|data_pipeline|docs|fusmae_jax|tests"
    text = read(document)
    names = re.findall(rf"(?<![\w/.])(?:{folders})/[\w/]+(?:\.\w+|/)", text)
    names = [name for name in names if "NAME" not in name]  # which stands for any
    names = set(names) - set(re.findall('title="(.*)"', text))  # which the page writes
    assert not [name for name in names if not (ROOT / name).exists()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_name_configs_and_fields_that_there_are(document):
    text = read(document).replace("\\\n", " ")
    named = set(re.findall(r"--config=configs/(\w+)\.py", text))
    assert named <= CONFIGS
    known = set().union(*map(fields_of, CONFIGS))
    passed = set(re.findall(r"--config\.([a-z][\w.]*)=", text))
    assert passed <= known


def test_tables_of_tasks_name_every_config():
    named = set(re.findall(r"`(\w+)`", read("README.md") + read("docs/usage.md")))
    assert CONFIGS <= named


def test_package_citation_and_changelog_are_of_one_version():
    package = configparser.ConfigParser()
    package.read(ROOT / "setup.cfg", encoding="utf-8")
    version = package["metadata"]["version"]
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == version
    assert citation["license"] == package["metadata"]["license"]
    assert f"## {version} (" in read("CHANGELOG.md")
    (paper,) = citation["references"]
    assert paper["url"] in read("README.md") and paper["authors"]
