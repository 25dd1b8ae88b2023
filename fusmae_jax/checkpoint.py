"""Saving and restoring with Orbax. The only file that knows Orbax."""

import pathlib
import textwrap

import jax
from orbax.checkpoint import v1 as ocp

from data_pipeline.errors import InputError
from fusmae_jax import sharding


class Checkpoints:
    """A run's checkpoints: the last few, and every n-th for good.

    A context manager; leaving it waits for what is still being written.
    """

    def __init__(self, directory, *, every: int, keep: int, keep_every: int = 0):
        """Opens `directory`, made if need be.

        Args:
            directory: where `<step>/` folders go.
            every: steps between checkpoints.
            keep: how many of the latest stay.
            keep_every: checkpoints of its multiples stay for good; 0 for none.
        """
        policies = ocp.training.preservation_policies
        preserve = [policies.LatestN(keep)]
        if keep_every:
            preserve.append(policies.EveryNSteps(keep_every))
        every = ocp.training.save_decision_policies.FixedIntervalPolicy(every)
        self._checkpointer = ocp.training.Checkpointer(
            pathlib.Path(directory).absolute(),  # Orbax refuses relative paths
            save_decision_policy=every,
            preservation_policy=policies.AnyPreservationPolicy(preserve),
            # A run killed while saving leaves a half-written folder behind.
            cleanup_tmp_directories=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """The last saved step, None before the first."""
        newest = self._checkpointer.latest
        return None if newest is None else int(newest.step)

    def due(self, step: int) -> bool:
        """Whether a state of this step is to be saved."""
        return step != self.latest and self._checkpointer.should_save(step)

    def save(self, step: int, state) -> None:
        """Starts saving `state`, which may be donated as soon as this returns."""
        self._checkpointer.save_async(step, state, force=True)

    def restore(self, state, layout):
        """The last saved state, laid out as `layout`."""
        return self._checkpointer.load(abstract_state=abstract(state, layout))


def abstract(tree, layout):
    """Shapes, dtypes and shardings of `tree`: what to restore, and where."""

    def leaf(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree, layout)


def restore_params(directory, abstract_params, step: int | None = None):
    """Loads parameters alone, leaving the optimiser's state on disk.

    Args:
        directory: a run's `checkpoints` folder.
        abstract_params: as `abstract` gives them.
        step: which checkpoint; None for the latest.

    Returns:
        The step and the parameters.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or it holds other
            parameters.
    """
    directory = pathlib.Path(directory).absolute()
    context = ocp.Context()
    context.pytree_options.loading.partial_load = True
    if not directory.is_dir():
        raise InputError(
            f"{directory} does not exist; name the directory of a run that has saved "
            "a checkpoint."
        )
    with context, ocp.training.Checkpointer(directory) as checkpoints:
        steps = [int(c.step) for c in checkpoints.checkpoints]
        if not steps:
            raise InputError(
                f"{directory} holds no checkpoint; wait until that run has saved one, "
                "or name another run."
            )
        wanted = max(steps) if step is None else step
        if wanted not in steps:
            raise InputError(
                f"{directory} holds no checkpoint of step {wanted}; it holds {steps}."
            )
        path = directory / str(wanted)
        try:
            stored = checkpoints.metadata(wanted).metadata or {}
            _check_shapes(path, stored["params"], abstract_params)
            _check_chunks(stored["params"])
            state = checkpoints.load(wanted, {"params": abstract_params})
        except InputError:
            raise
        except Exception as error:  # whatever the parsers inside Orbax raise
            why = textwrap.shorten(repr(error.__cause__ or error), 120)
            raise InputError(
                f"The checkpoint {path} cannot be read, as if half-written ({why}); "
                f"copy it again, or choose another step than {wanted} of {steps}."
            ) from error
    return wanted, state["params"]


def _check_shapes(path: pathlib.Path, stored, abstract_params) -> None:
    """Refuses a checkpoint of another model."""
    there, here = (
        {
            sharding.leaf_path(key): list(leaf.shape)
            for key, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (stored, abstract_params)
    )
    differing = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
    if differing:
        name = differing[0]
        raise InputError(
            f"The checkpoint {path} does not hold the model of its config.json: "
            f"{len(differing)} parameters differ, such as {name}, {there.get(name)} "
            f"there and {here.get(name)} by the config; put the config.json of that "
            "run back."
        )


def _check_chunks(stored) -> None:
    """Refuses arrays stored in chunks larger than themselves.

    TensorStore makes room for a whole chunk, and ends the process where it cannot.
    """
    for key, leaf in jax.tree_util.tree_leaves_with_path(stored):
        storage = leaf.storage_metadata
        chunks = storage.chunk_shape if storage else None
        sizes = zip(chunks or (), leaf.shape)
        if any(part > max(whole, 1) for part, whole in sizes):
            name = sharding.leaf_path(key)
            raise ValueError(f"{name}, {leaf.shape}, is in chunks of {chunks}")
