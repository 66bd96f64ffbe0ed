"""What a person sees of a run, and that it costs the driver next to nothing."""

from __future__ import annotations

import dataclasses
import io
import math
import sys
from typing import Any

import pytest

from tuner.progress import (
    Redraw,
    TerminalProgress,
    clock_text,
    frame,
    line,
    params_text,
    seconds_left,
    sparkline,
)
from tuner.snapshot import RunningTrial, Snapshot


class Terminal(io.StringIO):
    """A terminal that keeps what was written."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that a test moves; each look costs ``step`` seconds."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def snapshot(**changes: Any) -> Snapshot:
    running = (
        RunningTrial(
            number=14, attempt=1, seconds=3.0, step=4, values=(0.1, 0.5, 0.9), params={"lr": 0.00123}
        ),
        RunningTrial(number=15, attempt=2, seconds=65.0, step=None, values=(), params={}),
    )
    plain = Snapshot(
        study="digits",
        directions=("maximize",),
        states={"COMPLETE": 9, "PRUNED": 4, "FAIL": 1, "RUNNING": 2},
        n_trials=24,
        seconds=42.0,
        finished_here=14,
        running=running,
        best=0.97331,
        best_number=7,
        best_params={"lr": 0.001},
        reasons={"rank_lost": 2, "exception": 1},
        retrying=1,
        slots=2,
        cluster="1 node, 2 CPUs",
        phase="running",
    )
    return dataclasses.replace(plain, **changes)


def shown(snap: Snapshot, max_running: int = 10) -> str:
    return "\n".join(text.plain for text in frame(snap, max_running=max_running))


def test_the_view_shows_counts_best_curves_rate_time_left_and_failures_by_class() -> None:
    text = shown(snapshot())
    for part in (
        "digits",
        "14/24 trials",
        "done 9",
        "running 2/2",
        "pruned 4",
        "failed 1",
        "retrying 1",
        "best 0.97331  trial 7  lr=0.001",
        "#14",
        "▁▅█",
        "attempt 2",
        "20 trials/min",
        "0:30 left",
        "exception 1, rank_lost 2",
    ):
        assert part in text, part


def test_more_running_trials_than_fit_are_counted() -> None:
    assert "and 1 more running" in shown(snapshot(), max_running=1)


def test_without_a_budget_or_a_best_value_nothing_is_invented() -> None:
    bare = snapshot(n_trials=None, best=None, best_number=None, best_params={}, finished_here=0, seconds=0.0)
    text = shown(bare)
    assert "left" not in text
    assert "trials/min" not in text
    assert "best -" in text
    assert seconds_left(bare) is None


def test_the_phase_says_what_happens_to_running_trials() -> None:
    assert "nothing new starts" in shown(snapshot(phase="draining"))
    assert "Ctrl-C again" in shown(snapshot(phase="interrupting"))


def test_names_with_markup_are_shown_as_they_are() -> None:
    assert "[bold]x[/bold]" in shown(snapshot(study="[bold]x[/bold]"))


def test_a_frame_replaces_the_last_one_in_place() -> None:
    terminal, clock = Terminal(), Clock()
    progress = TerminalProgress(terminal, clock=clock)
    progress.update(snapshot())
    lines = terminal.getvalue().count("\n")
    clock.now += 10
    progress.update(snapshot(best=0.98))
    assert f"\x1b[{lines}F\x1b[J" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


@pytest.mark.parametrize("cost", [0.001, 0.05])
def test_frames_take_less_than_one_percent_of_the_time(cost: float) -> None:
    terminal, clock = Terminal(), Clock()
    progress = TerminalProgress(terminal, clock=clock)
    drawn = 0
    for _ in range(2000):  # the driver calls every 10 ms for 20 s
        before = len(terminal.getvalue())
        clock.step = cost  # each look at the clock while drawing moves it by the frame's cost
        progress.update(snapshot())
        clock.step = 0.0
        drawn += len(terminal.getvalue()) > before
        clock.now += 0.01
    assert drawn >= 1
    assert drawn * cost <= 0.011 * clock.now + cost


def test_plain_lines_appear_only_when_something_changed() -> None:
    out, clock = io.StringIO(), Clock()
    progress = TerminalProgress(out, clock=clock)
    for states in ({"COMPLETE": 1}, {"COMPLETE": 1}, {"COMPLETE": 2}):
        clock.now += 100
        progress.update(snapshot(states=states))
    assert out.getvalue().count("\n") == 2
    assert "\x1b" not in out.getvalue()
    clock.now += 0.1
    progress.update(snapshot(states={"COMPLETE": 3}))  # too soon
    assert out.getvalue().count("\n") == 2
    progress.close(snapshot(states={"COMPLETE": 3}), "budget of 3 trials spent\nmore")
    progress.close(None, "again")
    assert out.getvalue().splitlines()[-2:] == [
        line(snapshot(states={"COMPLETE": 3})),
        "budget of 3 trials spent",
    ]


def test_other_output_appears_above_the_view_and_streams_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = TerminalProgress(terminal)
    progress.update(snapshot())
    view = terminal.getvalue()
    print("from a callback")
    height = view.count("\n")
    assert terminal.getvalue() == f"{view}\x1b[{height}F\x1b[Jfrom a callback\n{view}"
    progress.close(snapshot(), "done")
    assert sys.stdout is terminal
    assert sys.stderr is terminal


def test_a_view_is_never_taller_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "6")
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    redraw = Redraw(terminal)
    redraw.draw(frame(snapshot(), max_running=50))
    redraw.finish()
    assert terminal.getvalue().count("\n") == 5


def test_sparkline_scales_and_leaves_gaps() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([1.0, math.nan, math.inf, 2.0]) == "▁  █"
    assert sparkline([3.0, 3.0]) == "▄▄"
    assert sparkline([-1.7e308, 1.7e308]) == "▁█"
    assert sparkline([]) == ""
    assert sparkline([math.nan]) == " "
    assert len(sparkline(list(map(float, range(100))), 16)) == 16


def test_texts_for_people() -> None:
    assert [clock_text(seconds) for seconds in (0, 59.6, 3723)] == ["0:00", "1:00", "1:02:03"]
    assert params_text({"lr": 0.000123456789, "name": "a" * 50}) == "lr=0.000123457 name=" + "a" * 21 + "..."
