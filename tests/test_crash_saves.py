"""Processes that are killed while they save leave nothing wrong behind."""

import pytest

from tests.faults import crash_saves

pytestmark = pytest.mark.journey


def test_processes_killed_while_saving_leave_whole_checkpoints(tmp_path):
    told = crash_saves.crash(tmp_path / "checkpoints", kills=8, seed=0)
    assert told["within_a_save"] >= 2 and told["step"] > 0
