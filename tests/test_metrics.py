"""Metrics: one step behind, nothing lost, nothing twice, and never a silent NaN."""

import struct
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from data_pipeline.errors import InputError
from fusmae_jax import flops, metrics
from tests import tiny


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
def test_a_loss_that_is_not_finite_ends_the_run_after_it_is_written(tmp_path, loss):
    writer = metrics.MetricWriter(tmp_path)
    writer.write(7, {"loss": jnp.float32(loss), "grad_norm": 3.0})
    with pytest.raises(InputError, match=f"{loss} at step 7.*base_lr"):
        writer.flush()
    writer.flush()
    writer.close()
    (row,) = metrics.read_metrics(tmp_path)
    assert row == {"step": 7, "loss": None, "grad_norm": 3.0}  # JSON knows no NaN


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


def test_progress_is_a_log_line_with_the_time_left(clock, lines):
    progress = metrics.Progress(10, 40)
    progress.step()
    clock.now += 60.0
    progress.show({"step": 20, "loss": 0.51239, "images_per_sec": 812.34})
    progress.close()
    assert lines == ["step 20/40, loss 0.5124, 812.3 img/s, 02:00 left"]


def test_progress_says_nothing_without_a_row(clock, lines):
    metrics.Progress(0, 4).show(None)
    assert not lines


def test_rates_are_of_the_interval(clock, monkeypatch):
    monkeypatch.setattr(flops, "peak", lambda kind: 1e12)
    config = tiny.config()
    interval = metrics.Clock(config)
    for _ in range(5):
        interval.step(0.2)
    clock.now += 4.0
    rates = interval.rates()
    each = flops.train_step_flops(config.model.to_dict(), tiny.BANDS, 0.75)
    per_device = 10.0 * each / jax.device_count()  # 5 batches of 8 pairs in 4 s
    assert rates == pytest.approx(
        {
            "images_per_sec": 10.0,
            "data_wait": 0.25,
            "tflops_per_device": per_device / 1e12,
            "mfu": per_device / 1e12,
        }
    )
    interval.step(0.0)
    clock.now += 1.0
    assert interval.rates()["images_per_sec"] == pytest.approx(8.0)


def test_a_device_without_a_known_peak_has_no_utilisation(clock):
    interval = metrics.Clock(tiny.config())
    clock.now += 1.0
    assert "mfu" not in interval.rates()


def test_a_damaged_line_in_the_middle_is_not_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match="Line 2 of"):
        metrics.read_metrics(tmp_path)
