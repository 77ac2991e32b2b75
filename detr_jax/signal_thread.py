"""Hears SIGINT (Ctrl-C) and SIGTERM at once, whatever the main thread does.

Python runs signal handlers in the main thread, between two of its own operations. A compilation or a step in C++ can
keep it from that for minutes. The thread of this file is told by the operating system's own handler.
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

SIGNALS = (int(signal.SIGINT), int(signal.SIGTERM))


class SignalThread:
    """Inside this context, each SIGINT and SIGTERM calls two functions with its number.

    Args:
      heard: is called at once in a thread of this object, once for each signal.
      handler: is called in the main thread as a usual signal handler, which may raise an exception. Several signals
        that come while the main thread is busy may cause one call only.

    Outside of the main thread the context does nothing, because only the main thread can receive signals.
    """

    def __init__(self, heard: Callable[[int], object], handler: Callable[[int, Any], object]):
        self.previous: dict[int, Any] = {}
        """The handlers that the context replaces, by number of the signal."""
        self._heard = heard
        self._handler = handler
        self._pipe: tuple[int, int] | None = None
        self._previous_descriptor = -1
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        if os.name != "posix":  # no thread
            self._replace(lambda number, frame: (self._heard(number), self._handler(number, frame)))
            return self
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._previous_descriptor = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, args=self._pipe[:1], name="signals", daemon=True)
        self._thread.start()
        self._replace(self._handler)
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()
        if self._pipe is None or self._thread is None:
            return
        signal.set_wakeup_fd(self._previous_descriptor, warn_on_full_buffer=False)
        os.close(self._pipe[1])
        self._thread.join()
        os.close(self._pipe[0])
        self._pipe = None

    def restore(self) -> None:
        """Gives the signals back to the handlers from before. Call it in the main thread."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def _replace(self, handler: Callable[[int, Any], object]) -> None:
        for number in SIGNALS:
            self.previous[number] = signal.signal(number, handler)

    def _listen(self, reader: int) -> None:
        while numbers := os.read(reader, 1):
            if numbers[0] in SIGNALS:
                with suppress(BrokenPipeError):  # nobody reads the output any more
                    self._heard(numbers[0])
