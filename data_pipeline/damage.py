"""Training goes on where records are damaged, if it is told to: nothing is silent."""

import collections
import logging

import numpy as np

from data_pipeline import watch
from data_pipeline.errors import DamagedRecord, InputError

log = logging.getLogger("fusmae_jax")

CHOICES = ("stop", "skip")
FIELD = "replaced"  # of a pair: 1 where it stands in for a damaged one
TRIES = 32  # pairs that are tried in place of a damaged one
NAMED = 100  # damaged records that the log names


def check_choice(damaged: str) -> None:
    """Refuses a `data.damaged` that is not known."""
    if damaged not in CHOICES:
        raise InputError(
            f"data.damaged is {damaged!r}; choose one of {list(CHOICES)}."
        )


def for_training(source, damaged: str):
    """The training pairs of a source: `Replacing` for "skip", itself for "stop"."""
    return Replacing(source) if damaged == "skip" else source


class Replacing:
    """The pairs of a source, with others of it in place of damaged ones.

    What stands in for a pair depends on its index and on the source alone, so every
    step stays the same whoever reads it. Pairs have a field `FIELD` more.

    Attributes:
        parts: of the source, if it is a mixture; a pair is replaced by one of its part.
        shares: of the parts.
        notes: what was damaged, a sentence each time that it was met.
    """

    def __init__(self, source):
        """Reads from `source`, random-access pairs that raise `DamagedRecord`."""
        self._source = source
        self.parts = getattr(source, "parts", (source,))
        self.shares = getattr(source, "shares", (1.0,))
        self.notes = collections.deque()
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return len(self._source)

    @property
    def directories(self) -> tuple[str, ...]:
        """Where the source lies."""
        return getattr(self._source, "directories", ())

    def where(self, index: int) -> str:
        """Names a pair."""
        return watch.where(self._source, index)

    def __getitem__(self, index: int) -> dict:
        """One pair.

        Raises:
            InputError: neither it nor one of `TRIES` others can be read.
        """
        for tries in range(TRIES + 1):
            try:
                pair = self._source[self._other(index, tries) if tries else index]
            except DamagedRecord as error:
                self.notes.append(str(error))
            else:
                return pair | {FIELD: np.uint8(tries > 0)}
        raise InputError(
            f"{self.notes[-1]} {TRIES} pairs more that were tried in place of another "
            "cannot be read either, so data.damaged=skip does not help."
        )

    def _other(self, index: int, tries: int) -> int:
        """The pair that is tried in place of another."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        first, after = (int(x) for x in self._starts[part : part + 2])
        drawn = np.random.SeedSequence([index - first, tries]).generate_state(1)
        return first + int(drawn[0]) % (after - first)


def take_notes(source) -> list[str]:
    """What a source has noted since it was last asked; nothing, if it takes no notes.

    Other threads may read from it at the same time.
    """
    notes, taken = getattr(source, "notes", ()), []
    while notes:
        try:
            taken.append(notes.popleft())
        except IndexError:  # another thread took it
            break
    return taken


class Damages:
    """Logs every damaged record once, up to a number of them."""

    def __init__(self):
        self._seen = set()

    def tell(self, noted: tuple[dict, list[str]]) -> dict:
        """Logs what was noted with a batch, as far as it is new; returns the batch."""
        batch, notes = noted
        for note in notes:
            if note in self._seen or len(self._seen) > NAMED:
                continue
            self._seen.add(note)
            if len(self._seen) <= NAMED:
                log.warning("Another pair is trained on instead: %s", note)
            else:
                log.warning(
                    "More than %d records are damaged; more are replaced and counted, "
                    "but not named.",
                    NAMED,
                )
        return batch
