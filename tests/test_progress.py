"""What a person sees of a run, and that it costs the driver next to nothing."""

from __future__ import annotations

import dataclasses
import io
import math
import re
import sys
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from tuner.progress import (
    TerminalProgress,
    clock_text,
    frame,
    line,
    params_text,
    seconds_left,
    sparkline,
)
from tuner.redraw import Redraw, has_unicode
from tuner.snapshot import EVERY, SHARE, RunningTrial, Snapshot, leaders, pause


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
        elapsed=42.0,
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


def shown(snap: Snapshot, width: int = 120, height: int = 30, *, unicode: bool = True) -> str:
    return "\n".join(text.plain for text in frame(snap, width=width, height=height, unicode=unicode))


def many(count: int) -> tuple[RunningTrial, ...]:
    return tuple(
        RunningTrial(number=number, attempt=1, seconds=1.0, step=1, values=(0.1, 0.2), params={"lr": 0.1})
        for number in range(count)
    )


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


@pytest.mark.parametrize(("width", "height"), [(80, 23), (160, 23), (160, 50), (40, 8), (20, 2), (300, 10)])
@pytest.mark.parametrize("unicode", [True, False])
def test_forty_running_trials_fit_and_those_that_do_not_are_counted(
    width: int, height: int, unicode: bool
) -> None:
    name = "a-study-with-a-name-that-is-longer-than-any-terminal-" * 5
    lines = frame(snapshot(running=many(40), study=name), width=width, height=height, unicode=unicode)
    text = "\n".join(one.plain for one in lines)
    assert len(lines) <= max(height, 6)
    assert unicode or text.isascii()
    seen = {number for number in range(40) if f"#{number} " in text}
    if height > 7:
        hidden = int(text.partition("  and ")[2].partition(" ")[0] or 0)
        assert len(seen) + hidden == 40
        assert seen == set(range(len(seen)))
    if (width, height) == (160, 50):
        assert len(seen) == 40


def test_several_objectives_show_the_best_of_each() -> None:
    done = [(3, [0.5, 2.0]), (4, [0.25, 1.0]), (9, [0.75, 9.0]), (11, [])]
    best = leaders(done, ("minimize", "maximize"))
    assert best == ((0.25, 4), (9.0, 9))
    assert leaders(done, ("minimize",)) == leaders([], ("minimize", "maximize")) == ()
    several = snapshot(
        directions=("minimize", "maximize"), best=None, best_number=None, best_params={}, leaders=best
    )
    assert "best minimize 0.25 (trial 4)  maximize 9 (trial 9)" in shown(several)


def test_what_a_trial_waits_for_and_what_else_there_is_to_say_is_shown() -> None:
    waits = RunningTrial(number=1, attempt=1, seconds=0, step=None, values=(), waits="1 GPU")
    noted = RunningTrial(number=2, attempt=1, seconds=0, step=None, values=(), note="to resume")
    text = shown(snapshot(running=(waits, noted), phase=""))
    assert "waits for 1 GPU" in text
    assert "to resume" in text
    assert "nobody drives it" in text
    assert " left" not in text


def test_without_a_budget_or_a_best_value_nothing_is_invented() -> None:
    bare = snapshot(n_trials=None, best=None, best_number=None, best_params={}, finished_here=0, seconds=0.0)
    text = shown(bare)
    assert " left" not in text
    assert "trials/min" not in text
    assert "best -" in text
    assert seconds_left(bare) is None


def test_the_phase_says_what_happens_to_running_trials() -> None:
    assert "nothing new starts" in shown(snapshot(phase="draining"))
    interrupting = shown(snapshot(phase="interrupting")).splitlines()
    assert [len(line) <= 80 for line in interrupting if "Ctrl-C again" in line] == [True]


def test_names_with_markup_are_shown_as_they_are() -> None:
    assert "[bold]x[/bold]" in shown(snapshot(study="[bold]x[/bold]"))
    assert "a\\n\\x1b[2J" in shown(snapshot(study="a\n\x1b[2J"))


def test_a_frame_replaces_the_last_one_in_place() -> None:
    terminal, clock = Terminal(), Clock()
    progress = TerminalProgress(terminal, clock=clock)
    progress.update(snapshot())
    lines = terminal.getvalue().count("\n")
    clock.now += 10
    progress.update(snapshot(best=0.98))
    assert f"\x1b[{lines}F\x1b[J" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


def test_what_is_waited_for_stands_there_until_the_first_frame() -> None:
    terminal, log = Terminal(), io.StringIO()
    for file in (terminal, log):
        progress = TerminalProgress(file, clock=Clock())
        progress.wait("waiting for Ray")
        assert ("waiting for Ray" in file.getvalue()) is (file is terminal)  # a log needs no such line
        progress.update(snapshot())
    assert "\x1b[1F\x1b[J" in terminal.getvalue()  # the frame is in its place


def test_after_a_frame_the_driver_waits_a_hundred_times_as_long() -> None:
    assert pause(0.0) == EVERY
    for took in (0.003, 0.02, 0.08):
        assert took / (took + pause(took)) < 1 / SHARE
    assert pause(60.0) < 60  # it does not stand still for good


def test_a_terminal_that_was_made_narrower_is_cleared_of_all_rows_of_the_last_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = [100, 30]
    monkeypatch.setattr(Redraw, "size", property(lambda redraw: tuple(size)))
    terminal = Terminal()
    redraw = Redraw(terminal)
    redraw.draw([Text("x" * 90), Text("short")])
    size[0] = 40
    redraw.draw([Text("y")])
    redraw.finish()
    assert "\x1b[4F\x1b[J" in terminal.getvalue()  # 90 cells are three rows of 40 now
    assert terminal.getvalue().endswith("y\n")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, True),
        ({"LANG": "en_US.UTF-8"}, True),
        ({"LANG": "C"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),  # as Python sets it itself
        ({"LC_ALL": "POSIX", "LANG": "en_US.UTF-8"}, False),
        ({"LANG": "C.UTF-8"}, True),
        ({"TERM": "linux", "LANG": "en_US.UTF-8"}, False),
    ],
)
def test_block_characters_only_where_the_terminal_has_them(
    environment: dict[str, str], expected: bool
) -> None:
    assert has_unicode(Terminal(), environment) is expected


def test_a_name_that_the_terminal_cannot_write_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    progress = TerminalProgress(terminal)
    progress.update(snapshot(study="größe"))
    terminal.flush()
    assert b"gr??e" in raw.getvalue()
    assert "▁".encode() not in raw.getvalue()


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


def test_a_terminal_that_moves_no_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    TerminalProgress(terminal).update(snapshot())
    assert terminal.getvalue() == f"{line(snapshot())}\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_an_output_that_goes_away_ends_the_view_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    class Gone(Terminal):
        def isatty(self) -> bool:
            return is_terminal

        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    gone = Gone()
    monkeypatch.setattr(sys, "stderr", gone)
    progress = TerminalProgress(gone)
    progress.wait("waiting for Ray")
    progress.update(snapshot())
    progress.close(snapshot(), "done")
    assert sys.stderr is gone


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
    redraw.draw(frame(snapshot(), width=40, height=50))
    redraw.finish()
    assert terminal.getvalue().count("\n") == 5


def test_sparkline_scales_and_leaves_gaps() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([1.0, math.nan, math.inf, 2.0]) == "▁  █"
    assert sparkline([3.0, 3.0]) == "▄▄"
    assert sparkline([-1.7e308, 1.7e308]) == "▁█"
    assert sparkline([]) == ""
    assert sparkline([0.0, 1.0, 2.0], unicode=False) == "_=#"
    assert sparkline([math.nan]) == " "
    assert len(sparkline(list(map(float, range(100))), 16)) == 16


def test_texts_for_people() -> None:
    assert [clock_text(seconds) for seconds in (0, 59.6, 3723)] == ["0:00", "1:00", "1:02:03"]
    assert params_text({"lr": 0.000123456789, "name": "a" * 50}) == "lr=0.000123457 name=" + "a" * 21 + "..."


@pytest.mark.parametrize("phase", ["running", "paused", "ended", ""])
def test_no_colour_is_lost_on_a_light_terminal_nor_on_a_dark_one(phase: str) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=200)
    several = snapshot(best=None, leaders=((0.9, 3), (1.5, 7)), directions=("maximize", "minimize"))
    for shot in (snapshot(phase=phase), several):
        waiting = dataclasses.replace(shot.running[0], number=16, waits="a GPU", note="to resume")
        for text in frame(dataclasses.replace(shot, running=(*shot.running, waiting)), width=200, height=30):
            console.print(text)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    styles = {frozenset(found.split(";")) for found in re.findall(r"\x1b\[([0-9;]+)m", written)}
    assert len(styles) > 3
    pale = {
        "33",
        "36",
        "37",
        "93",
        "96",
        "97",
        "30",
        "34",
        "94",
    }  # yellow, cyan, white; black and blue on dark
    assert not [style for style in styles if style & pale]
    assert frozenset({"1", "32"}) not in styles  # which many terminals show as a bright green


def test_the_last_view_says_whether_it_shows_the_best_trial_whole() -> None:
    many = {f"parameter_{at}": at for at in range(20)}
    for file, snap, shows in (
        (Terminal(), snapshot(), True),
        (Terminal(), snapshot(best_params=many), False),
        (io.StringIO(), snapshot(), False),
    ):
        progress = TerminalProgress(file)
        progress.close(snap, "done")
        assert progress.shows_best is shows
