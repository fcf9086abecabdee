"""Ctrl-C, SIGTERM and SIGHUP: as exceptions that clean up, or noted for a loop that ends by itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ENDS = (signal.SIGTERM, signal.SIGHUP)


class StopSignal(KeyboardInterrupt):
    """A signal that ends the process, raised where it was.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def ends_as_exceptions() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise `StopSignal` as Ctrl-C raises KeyboardInterrupt, so that all is cleaned up."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StopSignal(number)

    with _handled(dict.fromkeys(_ENDS, stop)):
        yield


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Whatever is done inside, the handlers of the signals that end a process are the same afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ENDS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def first_is_noted(note: Callable[[int], None]) -> Iterator[None]:
    """Inside, the first Ctrl-C, SIGTERM or SIGHUP is only noted; the next one raises.

    Args:
        note: called with the number of the signal, on the main thread.
    """
    noted = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            raise StopSignal(number)
        noted = True
        note(number)

    with _handled(dict.fromkeys((signal.SIGINT, *_ENDS), stop)):
        yield


@contextmanager
def _handled(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    """Sets handlers on the main thread; what the caller ignores, as under nohup, stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in handlers}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
