"""The report: one file that fetches nothing, says what the files say, and no more."""

import base64
import hashlib
import html.parser
import io
import json
import re
import shutil

import ml_collections
import numpy as np
import pytest
from matplotlib import image

from configs import report as report_config
from data_pipeline import sources
from data_pipeline.errors import InputError
from fusmae_jax import page_parts, report
from fusmae_jax.evaluation import encoder, results
from fusmae_jax.evaluation.scores import Score, Scores
from fusmae_jax.training import sharding
from tests import judging, teacher, tiny

HOSTILE = '<script>alert("1")</script>'


class Page(html.parser.HTMLParser):
    """What a page has: tags with attributes, cells of tables, and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.text, self.open = [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if not {"style", "script"} & set(self.open):
            self.text += data

    def having(self, tag, **attributes):
        return [
            found
            for name, found in self.tags
            if name == tag and attributes.items() <= found.items()
        ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with metrics and scores of its own, whose texts are a stranger's."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(judging.trained(tmp_path_factory), directory)
    rows = [
        {"step": 1, "loss": 2.5, "loss_s1": 1.0, "loss_s2": 1.5},
        {"step": 2, "loss": None, "loss_s1": 0.75, "loss_s2": 1.25},
        {"step": 2, "eval_loss_s1": 0.8125, "eval_floor_s1": 0.1875, HOSTILE: 1},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "metrics.jsonl").write_text(lines)
    scores = {
        "task": "reconstruct",
        "step": 6,
        "pairs": 3,
        "draws": 2,
        "mean_squared_error": {
            "Fus-MAE": {"s1": 0.28721, "s2": 0.20367},
            HOSTILE: {"s1": 0.5, "s2": None},
        },
        "floor": {"floor_s1": 0.10441},
    }
    (directory / "scores.json").write_text(json.dumps(scores))
    about = json.loads((directory / "config.json").read_text())
    about["data"], about["device"] = {"name": HOSTILE, "count": 17}, HOSTILE
    (directory / "config.json").write_text(json.dumps(about))
    return directory


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of the small method, which predicts no images, while it is known."""
    with teacher.known():
        yield judging.trained(tmp_path_factory, "teacher")


@pytest.fixture(scope="module")
def evaluation(run, tmp_path_factory):
    """Scores of all sensor sets, with intervals."""
    directory = tmp_path_factory.mktemp("evaluations")

    def row(sensors, encoder, value, task="probe"):
        score = Scores(
            {"map_micro": Score(value, value - 0.01, value + 0.02)}, {}, None
        )
        setting = (task, encoder, sensors, 0.1, 0, 10, 20, "mean", 32, {})
        return results.Row(*setting, score)

    rows = [
        row("s1", "Fus-MAE", 0.5),
        row("s2", "Fus-MAE", 0.625),
        row("both", "Fus-MAE", 0.75),
        row("both", HOSTILE, 0.25),
    ]
    meta = dict(
        dataset=HOSTILE, split="test", checkpoint="runs/a", step=6, note="Note."
    )
    results.write(directory, rows, classes=("a",), meta=meta)
    judged = encoder.digest(encoder.restore(run, sharding.make_mesh()).params)
    about = {"config": {}, "contract": {}, "data": {"parameters": judged}}
    (directory / "config.json").write_text(json.dumps(about))
    return directory


def written(run, out, **changes):
    c = report_config.get_config()
    c.run, c.out = str(run), str(out)
    c.update(changes)
    report.run(c, "unused")
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(run, evaluation, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "new" / "page.html"
    return written(run, out, evaluation=str(evaluation), shown=2)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_nothing_is_fetched(text, page):
    assert not re.search(r"(?i)\b(https?|ftp|file|wss?):", text)
    assert "@import" not in text and not page.having("link")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    addresses = re.findall(r"url\(([^)]{0,20})", text)
    assert addresses and all(x.startswith("data:image/") for x in addresses)
    (policy,) = page.having("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy["content"]


def test_what_a_stranger_wrote_is_text_and_nothing_else(text, page):
    assert HOSTILE not in text and len(page.having("script")) == 1
    assert page.text.count(HOSTILE) == 5  # data, device, predictor, dataset, encoder


def test_it_is_made_for_phones_too(page):
    (view,) = page.having("meta", name="viewport")
    assert view["content"] == "width=device-width, initial-scale=1"


def test_numbers_are_those_of_the_files(page):
    assert ["Fus-MAE", "0.2872", "0.2037"] in page.rows
    assert [HOSTILE, "0.5000", "-"] in page.rows
    assert ["floor, an estimate", "0.1044", "-"] in page.rows
    assert ["encoder", "labels", "score", "S1", "S2", "both"] in page.rows
    values = ["50.0 [49.0, 52.0]", "62.5 [61.5, 64.5]", "75.0 [74.0, 77.0]"]
    assert ["Fus-MAE", "10 %", "mAP (micro)", *values] in page.rows
    assert "checkpoint runs/a, step 6" in page.text and "Note." in page.text
    for said in (
        "training: 0.7500 at step 2",
        "training: 1.2500 at step 2",
        "training: 2.5000 at step 1",  # the last that is a number
        "held out: 0.8125 at step 2",
        "floor (estimate): 0.1875 at step 2",
    ):
        assert said in page.text
    assert ["data: count", "17"] in page.rows
    assert ["batch_size", "8"] in page.rows and ["model.dim", "32"] in page.rows
    assert ["Sentinel-1, dB", "VV VH"] in page.rows
    said = "width 32, depth 2, patches of 6 px, images of 24 px"
    assert ["encoder", said] in page.rows


def test_curves_go_through_their_numbers(page):
    curves = page.having("polyline")
    assert [x["class"] for x in curves] == "train held floor train train".split()
    places = [
        [[float(v) for v in point.split(",")] for point in x["points"].split()]
        for x in curves
    ]
    (x1, at_1), (x2, at_75), *_ = places[0]
    assert x1 < x2 == page_parts.WIDTH - page_parts.EDGE
    by_loss = (at_75 - at_1) / 0.25  # less is further down
    assert by_loss > 0
    for (_, y), loss in ((places[1][0], 0.8125), (places[2][0], 0.1875)):
        assert y == pytest.approx(at_1 + by_loss * (1.0 - loss), abs=0.3)


def pixels(address):
    kind, _, content = address.removeprefix("data:image/").partition(";base64,")
    return image.imread(io.BytesIO(base64.b64decode(content)), format=kind)


def test_pictures_are_of_both_sensors_with_a_slider_each(page):
    pictures = page.having("img")
    assert len(pictures) == 2 * 2 * 3  # pairs, sensors, what is shown
    assert len(page.having("input", type="range")) == 4
    target, predicted, masked = (pixels(x["src"])[..., :3] for x in pictures[:3])
    assert target.shape == predicted.shape == masked.shape == (24, 24, 3)
    grey = np.isclose(masked, report.GREY, atol=0.01).all(axis=-1)
    assert 0.5 < grey.mean() < 0.9  # hidden
    np.testing.assert_allclose(predicted[~grey], target[~grey], atol=0.01)
    assert np.abs(predicted - target)[grey].max() > 0.02


def test_every_point_has_a_thumbnail(page, text):
    points = page.having("circle")
    held_out = [int(x["data-i"]) for x in points]
    held = sources.open_split(tiny.config().data, "validation", ("id",))
    assert held_out == list(range(len(held)))
    assert [x["aria-label"] for x in points] == [held[i]["id"] for i in held_out]
    (thumb,) = page.having("div", id="thumb")
    sheet = pixels(re.search(r"url\((data:image/jpeg[^)]*)\)", text)[1])
    side = int(thumb["data-side"]) * int(thumb["data-columns"])
    assert sheet.shape == (side, side, 3)


def test_a_report_is_written_again_and_nothing_else_is_overwritten(small, tmp_path):
    target = shutil.copytree(small, tmp_path / "run") / "report.html"
    c = ml_collections.ConfigDict(report_config.get_config().to_dict())
    c.run = str(target.parent)
    report.run(c, "unused")
    before = target.read_bytes()
    report.run(c, "unused")
    assert target.read_bytes() == before
    target.write_text("mine")
    with pytest.raises(InputError, match="exists and is no report"):
        report.run(c, "unused")
    assert target.read_text() == "mine"


def test_a_run_whose_data_have_gone_is_reported_without_pictures(
    small, tmp_path, lines
):
    gone = shutil.copytree(small, tmp_path / "run")
    about = json.loads((gone / "config.json").read_text())
    about["config"]["data"] |= {"source": "records", "dir": str(tmp_path / "gone")}
    (gone / "config.json").write_text(json.dumps(about))
    page = Page(written(gone, tmp_path / "a.html"))
    assert "Not drawn: " in page.text and not page.having("img")
    assert any("no pictures of held-out pairs" in line for line in lines)
    with pytest.raises(InputError, match="elsewhere"):
        written(gone, tmp_path / "b.html", data_dir=str(tmp_path / "elsewhere"))


def test_a_method_that_predicts_no_images_has_features_alone(small, tmp_path):
    page = Page(written(small, tmp_path / "a.html"))
    assert not page.having("img") and len(page.having("circle")) == 2
    assert "Nothing was logged yet." in page.text


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("scores.json", "{}", "scores.json is damaged .* delete it"),
        ("metrics.jsonl", "{}\n{}\n{}", "Line 1 of .* is not JSON"),
    ],
)
def test_damaged_files_are_said_in_a_sentence(small, tmp_path, name, content, said):
    damaged = shutil.copytree(small, tmp_path / "run")
    (damaged / name).write_text(content)
    with pytest.raises(InputError, match=said):
        written(damaged, tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_scores_of_an_unknown_kind_are_said_in_a_sentence(evaluation, tmp_path):
    damaged = shutil.copytree(evaluation, tmp_path / "evaluation")
    text = (damaged / "scores.json").read_text()
    (damaged / "scores.json").write_text(
        text.replace('"fraction": 0.1', '"fraction": "x"')
    )
    with pytest.raises(InputError, match="are damaged"):
        report.scores(str(damaged), "")


def test_scores_of_other_parameters_are_said_to_be(evaluation, page, lines):
    said = "scores of other parameters than those of this page"
    assert said not in page.text
    assert said in report.scores(str(evaluation), "another checksum")
    assert any("an evaluation of other parameters" in line for line in lines)
