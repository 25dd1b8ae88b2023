"""Saving and restoring with Orbax. The only file that knows Orbax."""

import contextlib
import functools
import logging
import operator
import pathlib
from collections.abc import Callable

import jax
from orbax.checkpoint import v1 as ocp

from data_pipeline.errors import InputError
from fusmae_jax.training import integrity, sharding
from fusmae_jax.training.integrity import checksums

log = logging.getLogger("fusmae_jax")

STATE = "state"  # Orbax's name for what it is given to save
UNREADABLE = "cannot be read, as if half-written (what it holds is not described)"


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
        self._directory = pathlib.Path(directory).absolute()  # Orbax wants it so
        self._saving = None
        self._checkpointer = _open(
            self._directory,
            save_decision_policy=every,
            preservation_policy=policies.AnyPreservationPolicy(preserve),
            # A run killed while saving leaves a half-written folder behind.
            cleanup_tmp_directories=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            with self._explaining(), contextlib.closing(self._checkpointer) as saves:
                saves.wait()  # and both may raise
        except (InputError, OSError) as unsaved:
            if error is None:
                raise
            log.error("%s", unsaved)  # and what came before it goes on

    @property
    def latest(self) -> int | None:
        """The last saved step, None before the first."""
        newest = self._checkpointer.latest
        return None if newest is None else int(newest.step)

    def due(self, step: int) -> bool:
        """Whether a state of this step is to be saved."""
        with self._explaining():  # it asks after the save under way
            return step != self.latest and self._checkpointer.should_save(step)

    def save(self, step: int, state) -> None:
        """Starts saving `state`, which may be donated as soon as this returns.

        Raises:
            OSError: this state, or the one before, could not be written, as the disk
                is full or may not be written to.
            InputError: it could not for another reason.
        """
        with self._explaining():  # errors of the background show here
            self._checkpointer.wait()
        sums = checksums(_named(state))
        # Orbax reads from the devices in ways of its own.
        allowed = jax.transfer_guard("allow")
        with allowed, integrity.explain_unsaved(self._directory / str(step)):
            self._checkpointer.save_async(
                step, state, force=True, custom_metadata={"checksums": sums}
            )
        self._saving = step

    def _explaining(self):
        return integrity.explain_unsaved(self._directory / str(self._saving))

    def restore(self, init: Callable, layout):
        """The last saved state that is whole, or a fresh one before the first.

        Later ones, being damaged, are moved aside as soon as it has been found. There
        is never more than one state on the devices.

        Args:
            init: makes a fresh state, of which only what no checkpoint holds is made.
            layout: of the state on the devices.

        Raises:
            InputError: all are damaged, or of another model or of a newer version.
        """
        if self.latest is None:
            return init()
        state = abstract(jax.eval_shape(init), layout)
        wanted = _named(state)
        steps, damaged = saved_steps(self._directory), {}
        for step in reversed(steps):
            try:
                found = _read(
                    self._directory / str(step), wanted, integrity.check_state
                )
                break
            except integrity.Damaged as error:
                damaged[step] = str(error)
        else:
            raise integrity.none_is_whole(self._directory, damaged.get(steps[-1]))
        for spoilt, why in damaged.items():
            why = f"{why}; going on from step {step}"
            integrity.move_aside(self._directory, spoilt, why)
        if damaged:
            self._checkpointer.reload()
        fresh = sorted(wanted.keys() - found.keys())
        if fresh:
            log.info("New since step %d was saved: %s.", step, ", ".join(fresh))
            found |= _some(init, {name: wanted[name].sharding for name in fresh})
        return jax.tree_util.tree_map_with_path(
            lambda path, _: found[sharding.leaf_path(path)], state
        )


def abstract(tree, layout):
    """Shapes, dtypes and shardings of `tree`: what to restore, and where."""

    def leaf(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree, layout)


def saved_steps(directory: pathlib.Path) -> list[int]:
    """Steps of the finished checkpoints, damaged ones included, in ascending order."""
    # Orbax gives a folder this name when everything is in it.
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdecimal())


def restore_params(
    directory, abstract_params, step: int | None = None, kept: str = "params"
):
    """Loads parameters alone, leaving the optimiser's state on disk.

    Args:
        directory: a run's `checkpoints` folder.
        abstract_params: as `abstract` gives them; of any dtype.
        step: which checkpoint; None for the latest.
        kept: where in the state they lie, see `Objective.kept`.

    Returns:
        The step and the parameters.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or it holds other
            parameters.
    """
    directory = pathlib.Path(directory).absolute()
    if not directory.is_dir():
        raise InputError(
            f"{directory} does not exist; name the directory of a run that has saved "
            "a checkpoint."
        )
    steps = saved_steps(directory)
    if not steps:
        raise InputError(
            f"{directory} holds no checkpoint; wait until that run has saved one, or "
            "name another run."
        )
    wanted = max(steps) if step is None else step
    if wanted not in steps:
        raise InputError(
            f"{directory} holds no checkpoint of step {wanted}; it holds {steps}."
        )
    path, names = directory / str(wanted), kept.split("/")
    tree = functools.reduce(lambda x, name: {name: x}, names[::-1], abstract_params)
    check = functools.partial(integrity.check_params, kept=kept)
    try:
        found = _read(path, _named(tree), check)
    except integrity.OtherModel as error:
        raise InputError(
            f"The checkpoint {path} {error}; put the config.json of that run back."
        ) from error
    except integrity.Damaged as error:
        # Another step would be judged than was asked for: that is not ours to choose.
        raise InputError(
            f"The checkpoint {path} {error}; copy it again, or choose another step "
            f"than {wanted} of {steps}."
        ) from error
    params = jax.tree_util.tree_map_with_path(
        lambda key, _: found[sharding.leaf_path(key)], tree
    )
    return wanted, functools.reduce(operator.getitem, names, params)


def _some(init: Callable, layout: dict) -> dict[str, jax.Array]:
    """Those leaves of what `init` makes that have a layout; no others are computed."""

    def some():
        leaves = _named(init())
        return {name: leaves[name] for name in layout}

    return jax.jit(some, out_shardings=layout)()


def _named(tree) -> dict:
    """Leaves by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {sharding.leaf_path(path): leaf for path, leaf in leaves}


def _read(path: pathlib.Path, wanted: dict, check: Callable) -> dict[str, jax.Array]:
    """Loads those leaves of a checkpoint that are wanted, and makes sure of them.

    Args:
        path: of the checkpoint.
        wanted: shapes, dtypes and shardings by name.
        check: takes the path, what is stored and what is wanted, and may refuse.

    Raises:
        integrity.Damaged: some are not what was saved, or some host cannot read its
            part.
        InputError: by `check`.
    """

    def describe():
        about = _describe(path)
        check(path, _named(about.metadata), wanted)
        _check_chunks(about.metadata)
        return about

    def ask(key, there):
        # As it was saved: what is cast on its way cannot be compared.
        want = wanted.get(sharding.leaf_path(key))
        if want is None:
            return ocp.PLACEHOLDER
        return jax.ShapeDtypeStruct(there.shape, there.dtype, sharding=want.sharding)

    with _alone():
        about = integrity.everywhere(describe)
        asked = jax.tree_util.tree_map_with_path(ask, about.metadata)
        tree = integrity.everywhere(lambda: ocp.load(path, asked))
    found = {name: x for name, x in _named(tree).items() if name in wanted}
    sums = about.custom_metadata.get("checksums")
    if sums is None:
        log.info("The checkpoint %s has no checksums and was not verified.", path)
    else:
        changed = [k for k, s in checksums(found).items() if sums.get(k) != s]
        if changed:
            raise integrity.Damaged(
                f"does not hold what was saved: {len(changed)} arrays differ, such as "
                f"{changed[0]}"
            )
    return {name: x.astype(wanted[name].dtype) for name, x in found.items()}


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


def _alone() -> ocp.Context:
    """Orbax's options for a host that reads without waiting for others.

    One of them that failed would let the others wait for good.
    """
    context, host = ocp.Context(), ocp.multihost.process_index()
    context.multiprocessing_options.primary_host = host
    context.multiprocessing_options.active_processes = {host}
    context.multiprocessing_options.barrier_sync_key_prefix = f"host{host}"
    return context


def _open(directory: pathlib.Path, **options) -> ocp.training.Checkpointer:
    """Orbax's checkpointer, whatever became of the descriptions that it lists."""
    try:
        return ocp.training.Checkpointer(directory, **options)
    except (TypeError, ValueError) as error:
        steps = saved_steps(directory)
        damaged = []
        for step in steps:
            try:
                _describe(directory / str(step))
            except Exception:
                damaged.append(step)
        if not damaged:
            raise
        if damaged == steps:
            raise integrity.none_is_whole(directory, UNREADABLE) from error
        for step in damaged:
            integrity.move_aside(directory, step, UNREADABLE)
        return ocp.training.Checkpointer(directory, **options)


def _describe(path: pathlib.Path) -> ocp.CheckpointMetadata:
    """Shapes, dtypes and checksums of a checkpoint."""
    about = ocp.metadata(path, STATE)
    if about.commit_timestamp_nsecs is None or not about.metadata:
        raise integrity.Damaged(UNREADABLE)
    return about
