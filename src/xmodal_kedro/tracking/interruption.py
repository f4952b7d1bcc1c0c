"""Runs that are still open when the process ends are told so, however it ends short of SIGKILL.

Kedro calls no hook for Ctrl-C, and Python runs no exit handlers on a signal that kills it: SIGTERM and SIGHUP therefore
leave through `SystemExit` while a pipeline runs, unless somebody else handles them.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interruption:
    """Calls a function at the end of the process, from `watch` until `forget`."""

    def __init__(self, call: Callable[[], None]):
        """The function is called at most once, and never in a forked process."""
        self._call = call
        self._owner = os.getpid()
        self._handled: list[signal.Signals] = []

    def watch(self) -> None:
        """Start. Signals that somebody handles are left alone, and so are all outside of the main thread."""
        atexit.register(self._at_exit)
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._leave)
                self._handled.append(number)

    def forget(self) -> None:
        """Stop, and give back the signals that nobody else has taken meanwhile."""
        atexit.unregister(self._at_exit)
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self._handled:
            if signal.getsignal(number) == self._leave:
                signal.signal(number, signal.SIG_DFL)
        self._handled.clear()

    def _leave(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # A forked worker inherits the handler, but dies of the signal as any other process.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        sys.exit(128 + number)

    def _at_exit(self) -> None:
        if os.getpid() == self._owner:
            self._call()
