"""Signals that ask a run to stop: SIGTERM, SIGUSR1 as `sbatch --signal=USR1@120` sends it, and Ctrl-C."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkContext, ForkProcess

from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

_SAME_KEY = 1.0  # seconds in which a launcher passes on the Ctrl-C that all processes have received already
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preempted(SystemExit):
    """The run was asked to stop, and has written a checkpoint.

    The exit status is 128 + the signal's number (143 for SIGTERM, 138 for SIGUSR1). This is what shells, containers
    and schedulers report of a process that the signal itself ended, so that whatever starts pre-empted jobs again does
    so here; it is neither 0, a run that is done, nor 1, a run that failed.
    """


class Interrupted(KeyboardInterrupt):
    """The run was stopped by Ctrl-C, and has written a checkpoint. Notebooks and prompts go on, as after any Ctrl-C."""


class StopSignals:
    """Takes note of the signals while training; a context manager.

    A second Ctrl-C does not wait: it interrupts at once, and what came after the last checkpoint is lost.

    Outside of the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self):
        self.received: int | None = None
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def _note(self, number: int, frame) -> None:
        # A scheduler and a launcher may both send it: more of them change nothing.
        if self.received is None:
            self.received, self._since = number, time.monotonic()
            again = " Ctrl-C again stops at once, without a checkpoint." if number == signal.SIGINT else ""
            logger.warning("Received %s: stopping after this step.%s", signal.Signals(number).name, again)
        elif number == signal.SIGINT and time.monotonic() - self._since > _SAME_KEY:
            logger.warning("Stopping at once. The same command goes on from the last checkpoint, if there is one.")
            raise KeyboardInterrupt

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if kind is None and self.received is not None:
            signal.raise_signal(self.received)  # it came after the last step: what it does otherwise

    def stop(self, checkpoint: str, number: int) -> None:
        """End the run.

        Raises:
            Interrupted: by Ctrl-C.
            Preempted: by another signal.
        """
        logger.warning(
            "Stopped by %s. Everything up to here is in %s: start the same command again to go on.",
            signal.Signals(number).name,
            checkpoint,
        )
        raise Interrupted if number == signal.SIGINT else Preempted(128 + number)


def _leave_signals_to_parent(worker_id: int) -> None:
    """For loader workers: a signal that asks the run to stop reaches all its processes, but workers are still needed.

    The parent needs their batches for the running step, and ends them itself. Only Linux tells who sent a signal.
    """
    if sys.platform != "linux":
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


class _HeldBack(ForkProcess):
    """A process in which the signals are blocked from its first moment on, in all threads that it begins with."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _HeldBackContext(ForkContext):
    Process = _HeldBack


def bear_signals(loader: DataLoader) -> None:
    """Let the workers of a loader leave signals to their parent, from when they are forked on.

    Blocked when they are initialised is too late: signals reach them before, and threads that were there by then.
    """
    loader.worker_init_fn = _WorkerStart(loader.worker_init_fn)
    by_fork = multiprocessing.get_context().get_start_method() == "fork"
    if sys.platform == "linux" and by_fork and loader.num_workers > 0 and loader.multiprocessing_context is None:
        loader.multiprocessing_context = _HeldBackContext()


class _WorkerStart:
    """What a loader worker does first: leave signals to its parent, and then what else there was to do."""

    def __init__(self, then: Callable[[int], None] | None = None):
        self.then = then

    def __call__(self, worker_id: int) -> None:
        _leave_signals_to_parent(worker_id)
        if self.then is not None:
            self.then(worker_id)


def _wait_for_parent() -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)


__all__ = ["Interrupted", "Preempted", "StopSignals", "bear_signals"]
