"""Signals end a process by exceptions that clean up; the first one may only be noted."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from autocompress.stop_signals import StopSignal, ends_as_exceptions, first_is_noted, handlers_kept


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs before this ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_end_is_an_exception_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(StopSignal, match=number.name) as caught, ends_as_exceptions():
        send(number)
    assert caught.value.number == number
    assert isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_is_noted_and_the_second_raises(number: signal.Signals) -> None:
    seen: list[int] = []
    with pytest.raises(StopSignal), first_is_noted(seen.append):
        send(number)
        assert seen == [number]
        send(number)
    assert seen == [number]


def test_handlers_that_a_library_sets_do_not_stay() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handlers_kept():
        signal.signal(signal.SIGTERM, lambda number, frame: None)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ends_as_exceptions(), first_is_noted(lambda number: None):
            send(signal.SIGHUP)
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_set_no_handlers() -> None:
    ran: list[bool] = []

    def work() -> None:
        with ends_as_exceptions(), first_is_noted(lambda number: None):
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [True]
