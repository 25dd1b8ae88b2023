"""Figures of an evaluation: they draw the numbers they were given, and fit the page."""

import numpy as np
import pytest
from matplotlib import collections

from data_pipeline import classes
from data_pipeline.building import preview
from data_pipeline.errors import InputError
from fusmae_jax import figures
from fusmae_jax.evaluation import plots
from fusmae_jax.evaluation.results import RIVALS, Row
from fusmae_jax.evaluation.scores import Score, Scores

NAN = float("nan")
UNKNOWN = Score(NAN, NAN, NAN)
WHERE = "BigEarthNet, test split"
NAMES = ("Forest", "Water", "Barren")


def near(value):
    return Score(value, value - 0.02, value + 0.03)


def row(value=0.7, sensors="both", per_class=(0.5, 0.9, NAN), metric="ap", **fields):
    per_class = [near(v) for v in per_class]
    given = dict(
        task="probe",
        encoder="Fus-MAE",
        sensors=sensors,
        fraction=1.0,
        subset_seed=0,
        train_pairs=100,
        test_pairs=1234,
        features="mean of tokens",
        feature_dim=8,
        chosen={},
        scores=Scores({"map_micro": near(value)}, {metric: per_class}, None),
    )
    return Row(**given | fields)


def bars(ax):
    """{legend label: [(x, y, width, height)]} of a panel's bars."""
    return {
        container.get_label(): [
            (p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in container
        ]
        for container in ax.containers
    }


def intervals(ax):
    """The ends of the thin lines, one array [lines, 2, 2] for each call."""
    return [
        np.array(c.get_segments())
        for c in ax.collections
        if isinstance(c, collections.LineCollection)
    ]


def labels(ticks):
    return [tick.get_text().replace("\n", " ") for tick in ticks]


def assert_fits(fig):
    """Nothing that is drawn leaves the page."""
    fig.draw_without_rendering()
    box = fig.get_tightbbox()  # in inches
    width, height = fig.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, box


def test_classes_are_bars_with_intervals_the_best_on_top():
    given = [row(sensors="both"), row(sensors="s1", per_class=(0.4, 0.6, NAN))]
    fig = plots.per_class_figure(given, NAMES, where=WHERE)
    (ax,) = fig.axes
    assert labels(ax.get_yticklabels()) == ["Water", "Forest", "Barren"]
    assert ax.yaxis_inverted()
    widths = {k: [b[2] for b in v] for k, v in bars(ax).items()}
    np.testing.assert_allclose(widths["S1"], [60, 40, NAN])
    np.testing.assert_allclose(widths["both"], [90, 50, NAN])
    s1, both = intervals(ax)
    np.testing.assert_allclose(s1[..., 0], [[58, 63], [38, 43]])
    np.testing.assert_allclose(both[..., 0], [[88, 93], [48, 53]])
    middles = [y + height / 2 for _, y, _, height in bars(ax)["S1"]][:2]
    np.testing.assert_allclose(s1[..., 1], np.transpose([middles, middles]))
    (absent,) = ax.texts
    assert absent.get_text() == "not in this split" and absent.get_position()[1] == 2
    title = fig.get_suptitle()
    for part in ("Linear probe", "Fus-MAE", "100 % of the labels", WHERE, "1,234"):
        assert part in title
    assert "Average precision" in ax.get_xlabel()
    assert labels(fig.legends[0].get_texts()) == ["S1", "both"]


def test_recall_is_drawn_where_classes_have_recall():
    given = [row(metric="recall", sensors="s2")]
    fig = plots.per_class_figure(given, NAMES, where=WHERE)
    assert "Recall" in fig.axes[0].get_xlabel()
    assert not fig.legends  # of one sensor set


def test_bars_of_two_settings_do_not_cover_each_other():
    with pytest.raises(ValueError, match="one row for each sensor set"):
        plots.per_class_figure([row(), row(task="knn")], NAMES, where=WHERE)


def test_sensors_stand_beside_each_other_for_every_encoder():
    given = [
        row(0.7, "s1"),
        row(0.8, "both"),
        row(0.3, "both", encoder="image statistics"),
        row(0.1, "both", fraction=0.01),
        row(0.6, "s1", task="knn"),
    ]
    fig = plots.sensors_figure(given, "map_micro", where=WHERE)
    knn, probe = fig.axes
    assert knn.get_title() == "kNN, 100 % of the labels"
    assert probe.get_title() == "Linear probe, 100 % of the labels"
    assert labels(probe.get_xticklabels()) == ["Fus-MAE", "image statistics"]
    heights = {k: [b[3] for b in v] for k, v in bars(probe).items()}
    assert list(heights) == ["S1", "both"]
    np.testing.assert_allclose(heights["S1"], [70])
    np.testing.assert_allclose(heights["both"], [80, 30])
    np.testing.assert_allclose(intervals(probe)[1][..., 1], [[78, 83], [28, 33]])
    x = {k: [b[0] + b[2] / 2 for b in v] for k, v in bars(probe).items()}
    np.testing.assert_allclose(x["S1"] + x["both"], [-0.2, 0.2, 1.2])
    assert labels(probe.texts) == ["70.0", "80.0", "30.0"]
    assert fig.get_suptitle() == f"mAP (micro), %\n{WHERE}"
    assert fig.legends[0].get_title().get_text() == "lines: 95 % intervals"


def test_shares_of_labels_are_lines_of_means_with_their_spread():
    given = [
        row(0.9, "s2"),
        row(0.2, "s2", fraction=0.01, subset_seed=0),
        row(0.4, "s2", fraction=0.01, subset_seed=1),
        row(0.5, "s2", encoder="random initialisation"),
        row(0.6, "both"),
    ]
    fig = plots.fractions_figure(given, "map_micro", where=WHERE)
    s2, both = fig.axes
    assert s2.get_title() == "Linear probe, S2"
    assert both.get_title() == "Linear probe, both"
    lines = {line.get_label(): line.get_xydata() for line in s2.get_lines()}
    assert list(lines) == ["Fus-MAE", RIVALS[0]]
    np.testing.assert_allclose(lines["Fus-MAE"], [[1, 30], [100, 90]])
    np.testing.assert_allclose(lines["random initialisation"], [[100, 50]])
    std = 100 * np.std((0.2, 0.4), ddof=1)
    spread = intervals(s2)[0][..., 1]
    np.testing.assert_allclose(spread, [[30 - std, 30 + std], [88, 93]])
    assert s2.get_xscale() == "log"
    assert labels(both.get_xticklabels()) == ["1 %", "100 %"]
    said = fig.legends[0].get_title().get_text()
    assert said == "lines: 95 % intervals, or ± standard deviation over 2 subsets"


def test_encoders_differ_in_colour_and_marker():
    names = ("Fus-MAE", *RIVALS, "another run", "a third run")
    given = [row(0.1 * i, encoder=name) for i, name in enumerate(names)]
    fig = plots.fractions_figure(given, "map_micro", where=WHERE)
    assert_fits(fig)
    (ax,) = fig.axes
    looks_of = [(line.get_color(), line.get_marker()) for line in ax.get_lines()]
    assert len({c for c, _ in looks_of}) == len({m for _, m in looks_of}) == len(names)


@pytest.mark.parametrize("draw", (plots.sensors_figure, plots.fractions_figure))
def test_scores_without_intervals_or_values_are_drawn_as_far_as_known(draw):
    bare = Scores({"map_micro": Score(0.5, NAN, NAN)}, {}, None)
    empty = Scores({"map_micro": UNKNOWN}, {}, None)
    given = [row(scores=bare), row(scores=empty, encoder="image statistics")]
    fig = draw(given, "map_micro", where=WHERE)
    assert sum(map(len, intervals(fig.axes[0]))) == 0
    assert_fits(fig)
    with pytest.raises(InputError, match="judged by miou"):
        draw(given, "miou", where=WHERE)


def test_a_projection_shows_the_largest_directions_of_variance():
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 9.0, 0.1, 3.0])
    features = rng.normal(size=(50, 4)) * spread + 100
    labels = np.eye(2)[rng.integers(2, size=50)]
    fig = plots.projection_figure(features, labels, NAMES[:2], title="a title")
    (ax,) = fig.axes
    centred = features - features.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    want = (u * s)[:, :2]
    got = np.empty_like(want)
    colors = preview.class_colors(NAMES[:2]) / 255
    drawn = {tuple(c.get_facecolor()[0, :3]): c.get_offsets() for c in ax.collections}
    for i in range(2):
        got[labels[:, i] == 1] = drawn[tuple(colors[i])]
    np.testing.assert_allclose(np.abs(got), np.abs(want), rtol=1e-6, atol=1e-9)
    share = 100 * s**2 / (s**2).sum()
    assert f"{share[0]:.0f} % of the variance" in ax.get_xlabel()
    assert f"{share[1]:.0f} % of the variance" in ax.get_ylabel()
    assert ax.get_title() == "a title\n50 pairs"  # of one class each


def test_a_pair_has_the_colour_of_its_rarest_class():
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]])
    features = np.arange(10.0).reshape(5, 2) ** 2
    fig = plots.projection_figure(features, labels, NAMES, title="")
    (ax,) = fig.axes
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    assert names == [*NAMES, "no class"]
    colors = preview.class_colors(NAMES) / 255
    count = {
        tuple(c.get_facecolor()[0, :3]): len(c.get_offsets()) for c in ax.collections
    }
    assert [count[tuple(colors[i])] for i in range(4)] == [1, 2, 1, 1]
    assert "5 pairs; the colour is the pair's rarest class" in ax.get_title()


def test_of_many_pairs_the_same_few_thousand_are_drawn():
    n = plots.POINTS + 1000
    features = np.random.default_rng(0).normal(size=(n, 3))
    labels = np.ones((n, 1))
    first, again = (
        plots.projection_figure(features, labels, NAMES[:1], title="").axes[0]
        for _ in range(2)
    )
    points = first.collections[0].get_offsets()
    assert len(points) == plots.POINTS
    np.testing.assert_array_equal(points, again.collections[0].get_offsets())
    assert f"{plots.POINTS:,} of {n:,} pairs" in first.get_title()


def test_pairs_that_are_all_alike_can_be_drawn():
    for count in (1, 3):
        fig = plots.projection_figure(
            np.ones((count, 4)), np.eye(3)[:count], NAMES, title=""
        )
        assert "0 % of the variance" in fig.axes[0].get_xlabel()


def test_a_confusion_matrix_is_drawn_as_percent_of_its_rows():
    counts = np.array([[30, 10, 0], [0, 0, 0], [1, 1, 2]])
    fig = plots.confusion_figure(counts, NAMES, title="a title")
    ax = fig.axes[0]
    drawn = ax.images[0].get_array()
    np.testing.assert_allclose(drawn[[0, 2]], [[75, 25, 0], [25, 25, 50]])
    assert drawn.mask[1].all() and not drawn.mask[[0, 2]].any()
    assert labels(ax.get_yticklabels()) == ["Forest (40)", "Water (0)", "Barren (4)"]
    assert labels(ax.get_xticklabels()) == list(NAMES)
    assert labels(ax.texts) == ["75", "25", "0", "25", "25", "50"]
    assert [ax.get_ylabel(), ax.get_xlabel()] == ["true class", "predicted class"]
    assert fig.get_suptitle() == "a title"


def test_cooccurrence_is_the_share_of_a_classes_pairs_with_each_prediction():
    truth = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]])
    scores = np.array([[0.9, 0.6, 0.1], [0.5, 0.2, 0.8], [0.7, 0.9, 0.0], [1, 0, 0]])
    got = plots.cooccurrence(scores, truth)
    np.testing.assert_allclose(
        got, [[0.75, 0.5, 0.25], [1.0, 1.0, 0.0], [NAN, NAN, NAN]]
    )
    half = plots.cooccurrence(scores, truth, threshold=0.45)
    np.testing.assert_allclose(half[0], [1.0, 0.5, 0.25])
    fig = plots.cooccurrence_figure(got, NAMES, title="a title")
    np.testing.assert_allclose(fig.axes[0].images[0].get_array()[:2], 100 * got[:2])
    assert "rows do not add up to 100 %" in fig.get_suptitle()


def test_cooccurrence_of_one_label_each_is_the_confusion_matrix():
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(4, size=(2, 60))
    got = plots.cooccurrence(np.eye(4)[predicted], np.eye(4)[true])
    want = metrics.confusion_matrix(true, predicted, normalize="true")
    np.testing.assert_allclose(got, want)


@pytest.mark.journey
@pytest.mark.parametrize(
    "names", (classes.BIGEARTHNET_19, classes.BIGEARTHNET_43, classes.IGBP_10), ids=len
)
def test_long_names_of_classes_fit(names, tmp_path):
    count = len(names)
    per_class = [NAN, *np.linspace(0.1, 0.9, count - 1)]
    rng = np.random.default_rng(0)
    given = [row(sensors=s, per_class=per_class) for s in ("s1", "s2", "both")]
    truth = rng.random((200, count)) < 0.1
    for fig in (
        plots.per_class_figure(given, names, where=WHERE),
        plots.per_class_figure(given[:1], names, where=WHERE),
        plots.projection_figure(rng.normal(size=(200, 5)), truth, names, title=WHERE),
        plots.confusion_figure(rng.integers(99, size=(count,) * 2), names, title=""),
    ):
        assert_fits(fig)
    assert figures.save(fig, tmp_path / "confusion.png").ndim == 3
