"""Progress of long work: a bar with the time left on a terminal, else log lines."""

import logging
import time

import jax
import tqdm

log = logging.getLogger("fusmae_jax")

QUIET = 20.0  # seconds between log lines
WORTH_A_BAR = 1.0  # seconds, of what is often done sooner


class Progress:
    """Counts `unit`s of work; host 0 shows them. A context manager."""

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        done: int = 0,
        *,
        brief: bool = False,
        quiet: float = QUIET,
    ):
        """Begins with `done` of `total` behind it.

        Args:
            title: of the work; "" for none.
            total: how much there is to do, in units.
            unit: what is counted.
            done: how much is done already.
            brief: whether no bar stays behind.
            quiet: seconds between the log lines of `update`.
        """
        self._title, self._total, self._unit = title, total, unit
        self._done = self._first = done
        self._quiet = quiet
        self._start = self._said = time.monotonic()
        self._speaks = jax.process_index() == 0
        self._bar = tqdm.tqdm(
            total=total,
            initial=done,
            desc=title or None,
            unit=unit,
            dynamic_ncols=True,
            leave=not brief,
            delay=WORTH_A_BAR if brief else 0,
            disable=None if self._speaks else True,  # None: where no terminal is
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self) -> None:
        """Leaves the bar as it is, or none if it is brief."""
        self._bar.close()

    def update(self, number: int = 1, note: str = "") -> None:
        """Counts `number` more; `note` is shown beside them."""
        self._done += number
        self._bar.update(number)
        if time.monotonic() - self._said >= self._quiet:
            self.show(self._done, note)
        elif note:
            self._bar.set_postfix_str(note, refresh=False)

    def show(self, done: int, note: str = "") -> None:
        """Shows `note`, of when so much was done: beside the bar, else in a line."""
        self._said = time.monotonic()
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        if not (self._bar.disable and self._speaks):
            return
        left = (self._said - self._start) / (done - self._first) * (self._total - done)
        log.info(
            "%s%s %d/%d%s, %s left",
            *(self._title and f"{self._title}: ", self._unit, done, self._total),
            *(note and f", {note}", tqdm.tqdm.format_interval(left)),
        )
