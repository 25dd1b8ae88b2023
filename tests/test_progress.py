"""Long work says how far it is: a bar on a terminal, lines elsewhere, once a while."""

import io
import math
import sys

import jax
import pytest

from fusmae_jax.training import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when told."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def stderr(monkeypatch):
    """Where no terminal is."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_lines_come_once_a_while_with_the_time_left(clock, lines, stderr):
    with progress.Progress("Features: test", 100, "pair", done=20) as bar:
        bar.update(10)
        assert not lines
        clock[0] += progress.QUIET
        bar.update(10, note="loss 0.5")
        clock[0] += 1
        bar.update(10)
        clock[0] += progress.QUIET
        bar.update(50)
    assert lines == [
        # 20 of the 80 to do took 20 s.
        "Features: test: pair 40/100, loss 0.5, 01:00 left",
        "Features: test: pair 100/100, 00:00 left",
    ]
    assert not stderr.getvalue()


def test_who_shows_what_is_known_late_says_when_it_was(clock, lines, stderr):
    bar = progress.Progress("", 40, "step", 10, quiet=math.inf)
    for _ in range(15):
        clock[0] += 6.0
        bar.update()
    bar.show(20, "loss 0.5124")
    bar.close()
    assert lines == ["step 20/40, loss 0.5124, 03:00 left"]
    assert not stderr.getvalue()


def test_a_terminal_shows_a_bar_and_no_lines(clock, lines, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.Progress("Features: test", 4, "pair") as bar:
        clock[0] += 2 * progress.QUIET
        bar.update(4, note="loss 0.5")
    assert "Features: test" in stream.getvalue() and "4/4" in stream.getvalue()
    assert not lines


def test_only_host_0_speaks(clock, lines, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with progress.Progress("Features: test", 4, "pair") as bar:
        clock[0] += 2 * progress.QUIET
        bar.update(4)
    assert not lines and not stream.getvalue()


@pytest.mark.parametrize("worth, shown", [(60.0, False), (0.0, True)])
def test_what_is_brief_shows_a_bar_after_a_while_and_leaves_none(
    worth, shown, monkeypatch
):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "WORTH_A_BAR", worth)
    with progress.Progress("Neighbours", 4, "query", brief=True) as bar:
        bar.update(4)
    assert ("Neighbours" in stream.getvalue()) == shown
    assert not stream.getvalue().split("\r")[-1].strip()
