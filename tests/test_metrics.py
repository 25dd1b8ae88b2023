"""Metrics: one step behind, nothing lost, nothing twice, and never a silent NaN."""

import struct
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from data_pipeline.errors import InputError
from fusmae_jax.training import metrics


@pytest.fixture
def clock(monkeypatch):
    """Stands in for the `time` of the module; advance it with `clock.now += 1`."""
    fake = types.SimpleNamespace(now=100.0)
    fake.monotonic = lambda: fake.now
    monkeypatch.setattr(metrics, "time", fake)
    return fake


def events(workdir):
    """The scalars in TensorBoard's files, {name: {step: value}}."""
    found = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            # Length, its checksum, the event, its checksum.
            (length,) = struct.unpack_from("<Q", content, at)
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def write_three(workdir):
    writer = metrics.MetricWriter(workdir)
    for step in (1, 2, 3):
        writer.write(step, {"loss": jnp.float32(step / 4), "lr": 1e-3})
    writer.flush()
    writer.close()


def test_the_writer_is_one_step_behind(tmp_path):
    writer = metrics.MetricWriter(tmp_path)
    assert writer.write(10, {"loss": jnp.float32(0.5)}) is None
    assert not (tmp_path / "metrics.jsonl").exists()
    assert writer.write(20, {"loss": jnp.float32(0.25)}) == {"step": 10, "loss": 0.5}
    assert metrics.read_metrics(tmp_path) == [{"step": 10, "loss": 0.5}]
    assert writer.flush() == {"step": 20, "loss": 0.25}
    assert writer.flush() is None
    writer.flush()
    writer.close()


def test_closing_writes_what_is_left(tmp_path):
    write_three(tmp_path)
    assert metrics.read_metrics(tmp_path) == [
        {"step": step, "loss": step / 4, "lr": 1e-3} for step in (1, 2, 3)
    ]


def test_tensorboard_holds_the_same_scalars(tmp_path):
    write_three(tmp_path)
    found = events(tmp_path)
    assert found["loss"] == {1: 0.25, 2: 0.5, 3: 0.75}
    assert found["lr"] == {step: np.float32(1e-3) for step in (1, 2, 3)}
    assert set(found) == {"loss", "lr"}


def test_resuming_forgets_what_came_after_the_step(tmp_path):
    write_three(tmp_path)
    writer = metrics.MetricWriter(tmp_path, first_step=2)
    writer.write(3, {"loss": 9.0})
    writer.flush()
    writer.close()
    losses = {row["step"]: row["loss"] for row in metrics.read_metrics(tmp_path)}
    assert losses == {1: 0.25, 2: 0.5, 3: 9.0}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_line_cut_short_is_left_out_and_does_not_spoil_the_next(tmp_path):
    write_three(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-8])
    assert [row["step"] for row in metrics.read_metrics(tmp_path)] == [1, 2]
    writer = metrics.MetricWriter(tmp_path, first_step=3)
    writer.write(4, {"loss": 0.5})
    writer.flush()
    writer.close()
    assert [row["step"] for row in metrics.read_metrics(tmp_path)] == [1, 2, 4]


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_written_as_null(tmp_path, loss):
    writer = metrics.MetricWriter(tmp_path)
    writer.write(7, {"loss": jnp.float32(loss), "grad_norm": 3.0})
    row = writer.flush()
    np.testing.assert_equal(row, {"step": 7, "loss": loss, "grad_norm": 3.0})
    writer.close()
    (row,) = metrics.read_metrics(tmp_path)
    assert row == {"step": 7, "loss": None, "grad_norm": 3.0}  # JSON knows no NaN


def test_a_training_that_must_not_go_on_from_nan_is_told_what_to_do():
    metrics.check_finite(7, 0.5, "lower learning rates")
    with pytest.raises(metrics.Diverged, match="nan at step 7.* lower learning rates"):
        metrics.check_finite(7, np.nan, "lower learning rates")


def test_figures_reach_tensorboard(tmp_path):
    writer = metrics.MetricWriter(tmp_path)
    writer.add_figure("scene", np.zeros((4, 6, 3), np.uint8), 5)
    writer.flush()
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert b"\x89PNG" in path.read_bytes()


def test_only_host_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = metrics.MetricWriter(tmp_path)
    writer.write(1, {"loss": 0.5})
    writer.add_figure("scene", np.zeros((4, 6, 3), np.uint8), 1)
    writer.flush()
    writer.close()
    assert not list(tmp_path.iterdir())


def test_a_row_in_words_says_how_well_the_devices_are_used():
    row = {"step": 4, "loss": 0.51239, "lr": 1e-3, "images_per_sec": 812.34}
    assert metrics.in_words(row) == "loss 0.5124, 812.3 img/s"
    row |= {"tflops_per_device": 412.345, "mfu": 0.4169, "data_wait": 0.0}
    expected = ", 412 TFLOP/s a device, 41.7% MFU, 0.0% waiting for data"
    assert metrics.in_words(row) == "loss 0.5124, 812.3 img/s" + expected


class Step:
    """Stands in for a step's result: it ends when it is told to, or was."""

    def __init__(self, clock, ends: float):
        self._clock, self._ends = clock, ends

    def block_until_ready(self):
        self._clock.now = max(self._clock.now, self._ends)


def test_rates_are_of_the_steps_that_ended(clock):
    interval = metrics.Clock(8, 3 * 10**9, 1e12, ahead=0)
    for ends in (101.0, 102.0, 104.0):
        interval.step(clock.now, clock.now, Step(clock, ends))
    per_device = 6.0 * 3e9 / jax.device_count()  # 3 batches of 8 pairs in 4 s
    assert interval.rates() == pytest.approx(
        {
            "images_per_sec": 6.0,
            "data_wait": 0.0,
            "tflops_per_device": per_device / 1e12,
            "mfu": per_device / 1e12,
        }
    )
    interval.step(clock.now, clock.now, Step(clock, 105.0))
    assert interval.rates()["images_per_sec"] == pytest.approx(8.0)


def test_a_step_that_is_only_dispatched_does_not_count(clock):
    interval = metrics.Clock(8, 1, None, ahead=2)
    for ends in (101.0, 102.0):
        interval.step(100.0, 100.0, Step(clock, ends))
    assert interval.rates() == {}
    interval.step(100.0, 100.0, Step(clock, 103.0))
    assert interval.rates()["images_per_sec"] == 8.0  # one step, in its one second


def test_only_devices_without_work_wait_for_data(clock):
    interval = metrics.Clock(8, 1, None, ahead=0)
    interval.step(100.0, 100.0, Step(clock, 110.0))
    interval.step(101.0, 108.0, Step(clock, 120.0))  # came while the step before ran
    interval.step(115.0, 124.0, Step(clock, 130.0))  # came 4 s after that had ended
    interval.step(132.0, 135.0, Step(clock, 140.0))  # asked for 2 s after
    assert interval.rates()["data_wait"] == pytest.approx((4 + 3) / 40)


def test_a_new_interval_counts_no_step_under_way(clock):
    interval = metrics.Clock(8, 1, None, ahead=2)
    interval.step(clock.now, clock.now, Step(clock, 107.0))
    interval.restart()
    assert clock.now == 107.0 and interval.rates() == {}


def test_a_device_without_a_known_peak_has_no_utilisation(clock):
    interval = metrics.Clock(8, 1, None, ahead=0)
    interval.step(100.0, 100.0, Step(clock, 101.0))
    assert interval.rates() and "mfu" not in interval.rates()


def test_what_fails_in_a_step_is_raised_by_the_clock(clock):
    class Failing:
        def block_until_ready(self):
            raise RuntimeError("RESOURCE_EXHAUSTED")

    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        metrics.Clock(8, 1, None, ahead=0).step(0.0, 0.0, Failing())


def test_a_damaged_line_in_the_middle_is_not_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match="Line 2 of"):
        metrics.read_metrics(tmp_path)
