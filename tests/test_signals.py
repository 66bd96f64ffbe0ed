"""Signals that wait for the end of a fork."""

from __future__ import annotations

import signal
import threading

import pytest

from tuner.signals import Signals, deferred


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_the_block_takes_effect_at_its_end(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    reached = []

    def fork(signals: Signals) -> None:
        with deferred():
            signal.raise_signal(number)
            reached.append(signals.count)

    with Signals() as signals:
        with pytest.raises(KeyboardInterrupt, match=f"{number.name}, signal 1"):
            fork(signals)
        assert (reached, signals.count) == ([0], 1)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_nothing_is_done_outside_the_main_thread() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with deferred():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
