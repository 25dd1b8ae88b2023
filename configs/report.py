"""Writes what is known of a run as one HTML page, to look at and to pass on.

    python launch.py --config=configs/report.py --config.run=runs/quickstart

With --config.evaluation=runs/probe_sample it has the scores of an evaluation too. The
page is --config.out, by default report.html in the run directory. It needs no network:
pictures are inside.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.task = "report"
    c.run = ""
    c.step = 0
    c.evaluation = ""
    c.out = ""
    c.data_dir = ""
    c.pairs = 200
    c.shown = 6
    return c.lock()
