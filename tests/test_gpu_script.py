"""benchmarks/gpu.sh with programs that only pretend, and what it reads in their output.

CI rehearses the whole with the real ones.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import gpu_numbers

ROOT = pathlib.Path(__file__).parents[1]

# What the programs print, by their names.
SAID = {
    "losses": """\
1 x NVIDIA H200, jax 0.11.2, bfloat16
loss 2.4462 at step 3, after 46.0 s
step   1  here 2.446210  CPU 2.446200  apart 4.1e-06
3 losses, at most 4.1e-06 apart
""",
    "pretrain_step": """\
W1129 20:38:07.1 1 rest.cc:9] Delay kernel timed out
1 x NVIDIA H200, jax 0.11.2
     batch      GFLOP  compile s    ms/step         +-   images/s   TFLOP/s\
    of peak        GiB     in use
       512       59.8       41.0       61.7       0.4%     8298.2     496.23\
      50.2%      32.00      33.51
""",
    "race": """\
JAX: jax 0.11.2, bfloat16, NVIDIA H200
    first step after 51.0 s, loss 2.464
3 rounds of 49 steps; images/s:
  1  JAX 8300.10   eager 4100.00   compiled 6200.00
                                  images/s    JAX is       from - to
JAX                                8300.10    1.00 x     1.00 - 1.00        0.01
PyTorch, eager                     4100.00    2.02 x     2.01 - 2.03
PyTorch, compiled                  6200.00    1.34 x     1.33 - 1.35
""",
    "-c": "4096 pairs, 893 MB\n",
    "launch": """\
First step after 50.5 s (compiled in 31.6 s).
step 50/400, loss 1.1, 8000.0 img/s, 478 TFLOP/s a device, 48.4% MFU, \
2.5% waiting for data, 00:10 left
step 100/400, loss 1.0, 8200.0 img/s, 490 TFLOP/s a device, 49.6% MFU, \
0.1% waiting for data, 00:08 left
step 150/400, loss 0.9, 8210.0 img/s, 491 TFLOP/s a device, 49.7% MFU, \
0.0% waiting for data, 00:06 left
""",
    "attention": """\
NVIDIA H200, jax 0.11.2, batch 256, bfloat16
                   tokens       xla     cudnn
encoder, masked        99      1100       700
encoder, whole        393      9000         -
decoder               196      1500       900
""",
    "input_pipeline": """\
 threads workers  pairs/s  CPU us    MB/s  peak MB
       8       0    30000     300    6540     1000

the model consumes 8300 pairs/s
as stored: not input-bound: the input gives up to 30000 pairs/s (threads=8, \
workers=0), 3.6 times the 8300 that the model consumes
""",
}
PROGRAMS = {
    "smoke": "losses",
    "step": "pretrain_step",
    "profile": "pretrain_step",
    "race": "race",
    "records": "-c",
    "fed": "launch",
    "attention": "attention",
    "agreement": "losses",
    "agreement_bfloat16": "losses",
    "reading": "input_pipeline",
}
AHEAD = json.loads(gpu_numbers.PREDICTED.read_text())["H200 pretrain_base 512"]
NUMBERS = {
    "smoke": "1 x NVIDIA H200, jax 0.11.2, bfloat16; "
    "loss 2.4462 at step 3, after 46.0 s",
    "step": "batch 512: 8298.2 images/s, 496.23 TFLOP/s, MFU 50.2%, "
    f"61.7 ms (predicted {AHEAD['ms']}), 34.4 GB (predicted {AHEAD['gb']}), "
    "most in use 36.0 GB, "
    "compiled in 41.0 s",
    "profile": "61.7 ms a step while traced",
    "race": "JAX 8300.10 images/s; "
    "PyTorch, eager 4100.00 images/s (JAX is 2.02 x, 2.01 - 2.03); "
    "PyTorch, compiled 6200.00 images/s (JAX is 1.34 x, 1.33 - 1.35)",
    "records": "4096 pairs, 893 MB",
    "fed": "8200.0 images/s, MFU 49.6%, waited for data 0.1% (at most 2.5%), "
    "first step after 50.5 s",
    "attention": "us by xla / cudnn: encoder, masked 99: 1100 / 700; "
    "encoder, whole 393: 9000 / -; decoder 196: 1500 / 900",
    "agreement": "3 losses, at most 4.1e-06 apart",
    "agreement_bfloat16": "3 losses, at most 4.1e-06 apart",
    "reading": "not input-bound: the input gives up to 30000 pairs/s (threads=8, "
    "workers=0), 3.6 times the 8300 that the model consumes",
}

# Prints what is said of the first argument's program, after a file of its name ending
# in .sh, if there is one, has been run. Finding PyTorch is an empty program.
PRETENDER = """\
#!/usr/bin/env bash
name=$(basename -- "$1" .py)
[[ $name != gpu_numbers ]] || exec {python} "$@"
[[ "$*" != *find_spec* ]] || exec bash {said}/torch.sh
[[ $name != pretrain_step ]] || mkdir -p "$(sed 's/.*--profile=//' <<<"$*")"
[[ ! -e {said}/$name.sh ]] || . {said}/$name.sh
cat {said}/$name.txt
"""
# The race has 2 seconds.
HASTE = """\
#!/usr/bin/env bash
[[ "$*" != *race.py* ]] || exec {timeout} -k 1 2 "${{@:4}}"
exec {timeout} "$@"
"""


def program(path: pathlib.Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def pretend(tmp_path):
    """A folder of what the programs say and do, and the function that runs gpu.sh."""
    said, bin, out = (tmp_path / name for name in ("said", "bin", "out"))
    said.mkdir()
    bin.mkdir()
    for name, text in SAID.items():
        (said / f"{name}.txt").write_text(text)
    (said / "torch.sh").touch()
    program(bin / "python3", PRETENDER.format(python=sys.executable, said=said))
    program(bin / "timeout", HASTE.format(timeout="/usr/bin/timeout"))

    def run():
        done = subprocess.run(
            ["bash", ROOT / "benchmarks" / "gpu.sh", out, "--rehearse"],
            env=os.environ | {"PATH": f"{bin}:{os.environ['PATH']}", "WHEELS": "none"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout, read_summary(out)

    return said, out, run


def read_summary(out: pathlib.Path) -> dict[str, tuple[str, str]]:
    """Status and numbers, by part."""
    rows = (out / "summary.md").read_text().splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    return {name: (status, numbers) for _, name, status, _, _, numbers, _ in cells}


@pytest.mark.parametrize("part", PROGRAMS)
def test_numbers_of_a_part_are_found(part):
    assert gpu_numbers.READERS[part](SAID[PROGRAMS[part]]) == NUMBERS[part]


def test_step_stands_beside_what_was_predicted(tmp_path, monkeypatch):
    path = tmp_path / "predicted.json"
    path.write_text(json.dumps({"H200 pretrain_base 512": {"ms": 58.5, "gb": 31}}))
    monkeypatch.setattr(gpu_numbers, "PREDICTED", path)
    found = gpu_numbers.step(SAID["pretrain_step"])
    assert "61.7 ms (predicted 58.5), 34.4 GB (predicted 31), " in found
    other = SAID["pretrain_step"].replace("H200", "H100 80GB HBM3")
    assert "61.7 ms (predicted -)" in gpu_numbers.step(other)


def test_row_that_went_wrong_has_no_numbers():
    lines = SAID["pretrain_step"].splitlines()
    lines[-1] = "       512  out of memory"
    with pytest.raises(ValueError, match="out of memory"):
        gpu_numbers.step("\n".join(lines))


def test_every_part_leaves_its_numbers_in_at_most_eight_files(pretend):
    _, out, run = pretend
    code, printed, summary = run()
    assert code == 0, printed
    assert len(list(out.iterdir())) == 8
    assert summary.pop("look")[0] == "0"
    assert summary == {name: ("0", numbers) for name, numbers in NUMBERS.items()}
    assert "jax 0.11.2, batch 256" in (out / "attention.txt").read_text()


def test_smoke_step_that_fails_stops_everything(pretend):
    said, out, run = pretend
    (said / "losses.sh").write_text("echo {1..70} | tr ' ' '\\n'; exit 3")
    code, printed, summary = run()
    assert code == 1
    assert list(summary) == ["look", "smoke"] and summary["smoke"][0] == "3"
    numbers = [line for line in printed.splitlines() if line.isdigit()]
    assert numbers == [str(i) for i in range(11, 71)]  # the end of it, whole
    assert "Stopped" in printed and (out / "logs.tar.gz").exists()


def test_part_that_takes_too_long_is_told_and_the_next_one_runs(pretend):
    said, out, run = pretend
    (said / "race.sh").write_text("echo the race is on; sleep 600")
    code, printed, summary = run()
    assert code == 1
    assert summary["race"] == ("out of time", "") and summary["fed"][0] == "0"
    assert "race failed (out of time)" in printed
    assert "the race is on" in (out / "race.txt").read_text()


def test_part_that_fails_is_told_with_what_it_said(pretend):
    said, _, run = pretend
    (said / "launch.sh").write_text("echo no memory; exit 7")
    (said / "attention.txt").write_text("nothing")
    code, printed, summary = run()
    assert code == 2 and "no memory" in printed
    assert summary["fed"] == ("7", "") and summary["attention"] == ("no numbers", "")
    assert "No numbers of attention were found" in printed


def test_race_is_skipped_without_pytorch(pretend):
    said, out, run = pretend
    (said / "torch.sh").write_text("exit 1")
    code, _, summary = run()
    assert code == 0 and summary["race"][0] == "skipped"
    assert "no PyTorch" in (out / "race.txt").read_text()


def test_shares_of_the_parts_are_less_than_nine_minutes():
    text = (ROOT / "benchmarks" / "gpu.sh").read_text()
    shares = re.findall(r"^ *(?:\w+=\w+ )?(?:part \S+|gate) \w+ (\d+) ", text, re.M)
    assert len(shares) == len(PROGRAMS) + 2
    assert sum(map(int, shares)) <= 520
