"""Kills a process while it saves, again and again, and looks at what can be loaded.

    python tests/faults/crash_saves.py --kills=200

Each process restores what the one before left, compares every bit with what was saved
under that step, and goes on saving, until it is killed (SIGKILL) at a random moment.
"""

import argparse
import contextlib
import multiprocessing
import pathlib
import random
import sys
import tempfile
import time
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
# Processes are forked from one that has imported JAX, and does nothing with it.
warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from fusmae_jax.training import checkpoint, sharding  # noqa: E402


def state(step: int):
    """What is saved as `step`, and its layout."""
    rng = np.random.default_rng(step)
    params = {f"{i}/kernel": rng.random((64, 64), np.float32) for i in range(8)}
    tree = {"step": np.int32(step), "params": params}
    layout = jax.tree.map(lambda _: sharding.whole(sharding.make_mesh()), tree)
    return jax.device_put(tree, layout), layout


def save_on(directory: pathlib.Path, pipe, saving: bool = True) -> None:
    """Restores, compares, tells the step, and saves one after the other."""
    jax.config.update("jax_platforms", "cpu")
    with checkpoint.Checkpoints(directory, every=1, keep=2, keep_every=5) as saves:
        found = saves.restore(lambda: state(0)[0], state(0)[1])
        step = int(found["step"])
        same = all(
            np.array_equal(x, y)
            for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(state(step)[0]))
        )
        pipe.send((step, same))
        while saving:
            step += 1
            saves.save(step, state(step)[0])
            pipe.send(step)


def crash(directory: pathlib.Path, kills: int, seed: int) -> dict[str, int]:
    """Kills `kills` processes that save into `directory`.

    Returns:
        How many of them were killed, how many within a save, and the last step.

    Raises:
        AssertionError: a checkpoint held what was not saved, or went back too far.
    """
    draw, context = random.Random(seed), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fusmae_jax.training.checkpoint"])
    told = within = 0
    for kill in range(kills + 1):
        here, there = context.Pipe(duplex=False)
        arguments = directory, there, kill < kills
        process = context.Process(target=save_on, args=arguments)
        process.start()
        there.close()
        step, same = here.recv()
        assert same, f"step {step} holds what was not saved"
        # Of the last step that was begun, the one before had been finished.
        assert step >= told - 1, f"step {told} was begun, and {step} came back"
        if kill < kills:
            for _ in range(draw.randrange(3)):
                told = here.recv()
            time.sleep(draw.uniform(0, 0.3))
            process.kill()
            process.join()
            within += any("tmp" in path.name for path in directory.iterdir())
            with contextlib.suppress(EOFError):
                while True:
                    told = here.recv()
        process.join()
    return {"kills": kills, "within_a_save": within, "step": step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory) / "checkpoints"
        print(crash(folder, options.kills, options.seed))


if __name__ == "__main__":
    main()
