"""SIGTERM, which machines send before they are taken away.

What has nothing to lose ends at once, in whatever it is about: a thread listens, as the
main one may be compiling for minutes. What holds on is told, saves, and stops.

Importing this file does not import jax.
"""

import logging
import multiprocessing
import multiprocessing.util
import os
import signal
import socket
import threading

log = logging.getLogger("fusmae_jax")

GOES_ON = "the same command goes on from what was finished."

_lock = threading.Lock()
_asked = threading.Event()
_holding = False
_wires = None  # from the signal to the thread; kept for as long as the process


class Stopped(Exception):
    """A run stopped when asked to, and all it did is saved; says how to go on."""


def listen() -> None:
    """Has SIGTERM end this process with exit status 0, unless a `Notice` holds on.

    To be called by the main thread; again, where another handler took this one's place.
    """
    global _wires
    # Signals that Python handles reach the wire at once, the handler only when the main
    # thread is back from whatever library it is in.
    signal.signal(signal.SIGTERM, lambda *_: None)
    if _wires is None:
        _wires = socket.socketpair()
        _wires[1].setblocking(False)
        signal.set_wakeup_fd(_wires[1].fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_hear, args=(_wires[0],), daemon=True).start()


def _hear(wire: socket.socket) -> None:
    while heard := wire.recv(1):
        if heard[0] == signal.SIGTERM:
            with _lock:
                if not _holding:
                    _leave()
                if not _asked.is_set():
                    log.info("SIGTERM: finishing the step under way, then saving.")
                _asked.set()


def _leave() -> None:
    """Ends the process and its workers; what is half-done is done again some day."""
    os.write(2, f"\nStopped by SIGTERM; {GOES_ON}\n".encode())  # below a progress bar
    # Gives back the workers' semaphores, which Python would complain of else.
    multiprocessing.util._run_finalizers(0)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(0)  # before the main thread can complain of dead workers


class Notice:
    """Whether a run is asked to stop. A context manager, which a stopped run leaves.

    On one host SIGTERM asks, after `listen`. On several JAX's preemption service does,
    which hears SIGTERM on any of them and has all stop after the same step.
    """

    def __enter__(self):
        return self

    def hold(self) -> None:
        """From now on SIGTERM is a question, as there is something to lose."""
        global _holding
        with _lock:
            _holding = True

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`; all hosts ask after each step."""
        import jax
        from jax.experimental import multihost_utils

        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return _asked.is_set()

    def asked(self) -> bool:
        """Whether this host, being alone, may stop where it is."""
        import jax

        return jax.process_count() == 1 and _asked.is_set()

    def __exit__(self, kind, *error) -> None:
        global _holding
        with _lock:
            _holding = False
            if _asked.is_set() and kind is None:  # after it was last looked at
                raise Stopped(f"Stopped by SIGTERM; {GOES_ON}")
