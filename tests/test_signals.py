"""Signals that wait for the end of a fork."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

import tuner
from tuner.dispatch.connection import Connection
from tuner.signals import Signals, deferred
from tuner.snapshot import Snapshot


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_within_the_block_takes_effect_at_its_end(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    reached = []

    def fork(signals: Signals) -> None:
        with deferred():
            signal.raise_signal(number)
            reached.append(signals.count)

    with Signals() as signals:
        with pytest.raises(KeyboardInterrupt, match=f"{number.name}, signal 1"):
            fork(signals)
        assert (reached, signals.count) == ([0], 1)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_under_nohup_the_end_of_the_terminal_is_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals, deferred():
            signal.raise_signal(signal.SIGHUP)
        assert signals.count == 0
    finally:
        signal.signal(signal.SIGHUP, before)


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


def test_an_interrupt_while_ray_starts_ends_as_any_other(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "interrupted_objectives.py"
    file.write_text("def one(trial):\n    return trial.suggest_float('x', 0, 1)\n")
    study = tuner.create_study("s", storage=sqlite_url, sampler="random", seed=1)
    said: list[str] = []

    class Display:
        def update(self, snapshot: Snapshot) -> None:
            raise AssertionError("there is nothing to show yet")

        def close(self, snapshot: Snapshot | None, message: str) -> None:
            said.append(message)

    with monkeypatch.context() as patched:
        patched.setattr(Connection, "open", lambda self, run: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match="SIGINT"):
            tuner.optimize(study, f"{file}:one", 1, progress=Display())
    assert said == ["interrupted by SIGINT"]
    tuner.optimize(study, f"{file}:one", 1, executor="inline", progress=False)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]
