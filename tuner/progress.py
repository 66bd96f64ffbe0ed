"""A run on the terminal: one view that is redrawn in place, or plain lines where that is no use."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.text import Text

from tuner.redraw import Redraw, can_redraw
from tuner.snapshot import RunningTrial, Snapshot

__all__ = [
    "TerminalProgress",
    "clock_text",
    "frame",
    "heading",
    "line",
    "number_text",
    "params_text",
    "sparkline",
]

LINE_EVERY = 5.0  # seconds at least between plain lines
_BARS = "▁▂▃▄▅▆▇█"
_ASCII = "_.-=*#"
_COLUMN = 60  # cells of a running trial at least, where several stand side by side
_NOTE = "magenta"  # which can be read on light and on dark, as yellow and cyan cannot
_FINISHED = ("COMPLETE", "PRUNED", "FAIL")


class TerminalProgress:
    """Implements :class:`tuner.snapshot.Progress` for people at a terminal; where that goes away, nothing
    more is shown, and the run goes on.

    Args:
        file: where to write; standard error by default. If it is no terminal, a plain line
            appears when something has changed, every few seconds at most.
        says_why: whether its last line is why the run ended; not where the caller says so itself.
        clock: seconds that only grow; a test gives its own.

    Attributes:
        shows_best: its last view, on a terminal, has the best value and all of its parameters.
    """

    def __init__(
        self,
        file: TextIO | None = None,
        *,
        says_why: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file if file is not None else sys.stderr
        self._says_why = says_why
        self._clock = clock
        self._redraw = Redraw(self._file) if can_redraw(self._file) else None
        self._next = -math.inf
        self._last: object = None
        self._closed = False
        self.shows_best = False

    def wait(self, reason: str) -> None:
        """Show what is waited for until the first moment, on a terminal only."""
        if self._redraw is not None:
            with self._showing():
                self._redraw.draw([Text(reason)])

    def update(self, snapshot: Snapshot) -> None:
        """Show this moment; as a plain line, unless the last one was shown too short a time ago."""
        if self._closed:
            return
        if self._redraw is not None:
            with self._showing():
                self._draw(self._redraw, snapshot)
            return
        seen = (dict(snapshot.states), snapshot.best_number, snapshot.phase)
        if self._clock() >= self._next and seen != self._last:
            self._last = seen
            with self._showing():
                print(line(snapshot), file=self._file, flush=True)
            self._next = self._clock() + LINE_EVERY

    def close(self, snapshot: Snapshot | None, message: str) -> None:
        """Show the last moment and how the run ended. Can be called twice; the first counts."""
        if self._closed:
            return
        self._closed = True
        said = (message.strip().splitlines() or [""])[0] if self._says_why else ""
        with self._showing():
            if self._redraw is not None:
                if snapshot is not None:
                    self._draw(self._redraw, dataclasses.replace(snapshot, running=()))
                    fits = _best(snapshot).cell_len <= self._redraw.size[0]
                    self.shows_best = snapshot.best is not None and fits
                self._redraw.finish()
            elif snapshot is not None:
                print(line(snapshot), file=self._file)
            if said:
                print(said, file=self._file, flush=True)

    @contextlib.contextmanager
    def _showing(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._closed = True
            if self._redraw is not None:
                self._redraw.finish()

    @staticmethod
    def _draw(redraw: Redraw, snapshot: Snapshot) -> None:
        width, height = redraw.size
        redraw.draw(frame(snapshot, width=width, height=height, unicode=redraw.unicode))


# ---------------------------------------------------------------------- what is shown


def frame(snapshot: Snapshot, *, width: int, height: int, unicode: bool = True) -> list[Text]:
    """The lines of the live view.

    Args:
        width, height: cells and lines that there are.
        unicode: bars and curves in block characters; else in ASCII.
    """
    lines = [_heading(snapshot, width), *_phase(snapshot), _bar(snapshot, width, unicode)]
    lines += [_counters(snapshot), _best(snapshot)]
    failures = [Text(f"  failures  {_failures(snapshot)}", style="red")] if snapshot.reasons else []
    running = sorted(snapshot.running, key=lambda trial: trial.number)
    room = height - len(lines) - len(failures)
    if running and room > 0:
        lines += _rows(running, width, room, unicode)
    return lines + failures


def line(snapshot: Snapshot) -> str:
    """The moment in one plain line, for a log."""
    states = snapshot.states
    of = f"/{snapshot.n_trials}" if snapshot.n_trials is not None else ""
    text = (
        f"{heading(snapshot.study)}: {_finished(snapshot)}{of} finished "
        f"({states.get('COMPLETE', 0)} complete, "
        f"{states.get('PRUNED', 0)} pruned, {states.get('FAIL', 0)} failed), {len(snapshot.running)} running"
    )
    if snapshot.best is not None:
        text += f", best {number_text(snapshot.best)} (trial {snapshot.best_number})"
    left = seconds_left(snapshot)
    if left:
        text += f", {clock_text(left)} left"
    if snapshot.reasons:
        text += f"; failures: {_failures(snapshot)}"
    return text if snapshot.phase in ("running", "ended", "") else f"{text}; {snapshot.phase}"


def seconds_left(snapshot: Snapshot) -> float | None:
    """Seconds to the end of the budget at the rate of this run so far; None where nobody can say."""
    if snapshot.n_trials is None or snapshot.finished_here < 1:
        return None
    missing = max(0, snapshot.n_trials - _finished(snapshot))
    return missing * snapshot.seconds / snapshot.finished_here


def sparkline(values: Sequence[float], width: int = 16, *, unicode: bool = True) -> str:
    """A curve in one line of text; the newest values where there are more than ``width``.

    A value that is not finite is a gap.

    Example:
        >>> sparkline([0.0, 0.5, 1.0]), sparkline([0.0, 0.5, 1.0], unicode=False)
        ('▁▅█', '_=#')
    """
    bars = _BARS if unicode else _ASCII
    shown = list(values)[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return " " * len(shown)
    low, high = min(finite), max(finite)
    # halved first: the difference of two huge values may be no finite number
    span = high / 2 - low / 2
    levels = len(bars) - 1
    text = ""
    for value in shown:
        if not math.isfinite(value):
            text += " "
        elif not span:
            text += bars[levels // 2]
        else:
            text += bars[math.floor((value / 2 - low / 2) / span * levels + 0.5)]
    return text


def number_text(value: float | None) -> str:
    """A number for people: six digits that count, ``-`` for none."""
    return "-" if value is None else f"{value:.6g}"


def clock_text(seconds: float) -> str:
    """Seconds as ``0:07``, ``12:34`` or ``1:02:03``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def heading(name: str, width: int = 60) -> str:
    """The name of a study at the beginning of a line: control signs are escaped, a long one loses its middle.

    Example:
        >>> heading("two\\nlines"), heading("a" * 50 + "b" * 50, 13)
        ('two\\\\nlines', 'aaaaa...bbbbb')
    """
    return _cut(name if name.isprintable() else ascii(name)[1:-1], width)


def params_text(params: Mapping[str, Any]) -> str:
    """Parameters in one line, such as ``lr=0.0123 width=64``; long ones are cut."""
    parts = []
    for name, value in params.items():
        shown = number_text(value) if isinstance(value, float) else str(value)
        parts.append(f"{name}={shown if len(shown) <= 24 else shown[:21] + '...'}")
    return " ".join(parts).replace("\n", " ")


def _finished(snapshot: Snapshot) -> int:
    return sum(snapshot.states.get(state, 0) for state in _FINISHED)


def _failures(snapshot: Snapshot) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(snapshot.reasons.items()))


def _heading(snapshot: Snapshot, width: int) -> Text:
    name = heading(snapshot.study, max(20, width // 2))
    text = Text.assemble((name, "bold"), (f"  {', '.join(snapshot.directions)}", "dim"))
    if snapshot.cluster:
        text.append(f"  on {snapshot.cluster}", "dim")
    return text


def _phase(snapshot: Snapshot) -> list[Text]:
    said = {
        "": "nobody drives it",
        "paused": "paused: running trials go on, nothing new starts",
        "draining": "draining: running trials finish, nothing new starts",
        "interrupting": "interrupting: running trials checkpoint; Ctrl-C again ends them at once",
    }.get(snapshot.phase)
    return [Text(f"  {said}", _NOTE)] if said else []


def _bar(snapshot: Snapshot, width: int, unicode: bool) -> Text:
    done = _finished(snapshot)
    text = Text("  ")
    if snapshot.n_trials:
        cells = max(8, min(40, width - 60))
        filled = min(cells, cells * done // snapshot.n_trials)
        full, empty = ("━", "─") if unicode else ("#", "-")
        text.append(full * filled, "green").append(empty * (cells - filled), "dim")
        text.append(f"  {done}/{snapshot.n_trials} trials")
    else:
        text.append(f"{done} trials finished")
    text.append(f"  {clock_text(snapshot.elapsed)} elapsed")
    left = seconds_left(snapshot)
    if left is not None and snapshot.phase not in ("", "ended"):
        text.append(f"  {clock_text(left)} left")
    if snapshot.finished_here and snapshot.seconds > 0:
        text.append(f"  {60 * snapshot.finished_here / snapshot.seconds:.3g} trials/min", "dim")
    return text


def _counters(snapshot: Snapshot) -> Text:
    states, failed = snapshot.states, snapshot.states.get("FAIL", 0)
    of = "" if snapshot.slots is None else f"/{snapshot.slots}"
    text = Text.assemble(
        "  done ",
        (str(states.get("COMPLETE", 0)), "bold"),
        "  running ",
        (f"{len(snapshot.running)}{of}", "bold"),
        "  pruned ",
        (str(states.get("PRUNED", 0)), "bold"),
        "  failed ",
        (str(failed), "bold red" if failed else "bold"),
    )
    for name, count in (("retrying", snapshot.retrying), ("enqueued", states.get("WAITING", 0))):
        if count:
            text.append(f"  {name} {count}")
    return text


def _best(snapshot: Snapshot) -> Text:
    if snapshot.best is not None:
        return Text.assemble(
            "  best ",
            (number_text(snapshot.best), "bold"),
            f"  trial {snapshot.best_number}  ",
            (params_text(snapshot.best_params), "dim"),
        )
    text = Text("  best ")
    for (value, number), direction in zip(snapshot.leaders, snapshot.directions, strict=False):
        text.append(f"{direction} ", "dim").append(number_text(value), "bold")
        text.append(f" (trial {number})  ")
    return text if snapshot.leaders else text.append("-")


def _rows(trials: Sequence[RunningTrial], width: int, rows: int, unicode: bool) -> list[Text]:
    """The running trials in at most so many lines: side by side where they are many and there is room."""
    columns = max(1, min(-(-len(trials) // rows), width // _COLUMN))
    if len(trials) > columns * rows:
        rows = max(1, rows - 1)  # the last line says how many more there are
    shown = trials[: columns * rows]
    per_column, cell = -(-len(shown) // columns), width // columns
    lines = []
    for first in range(per_column):
        line = Text()
        for trial in shown[first::per_column]:
            one = _running(trial, cell, unicode)
            one.truncate(cell - 1, overflow="crop", pad=columns > 1)
            line.append_text(one).append(" ")
        lines.append(line)
    if len(trials) > len(shown):
        lines.append(Text(f"  and {len(trials) - len(shown)} more running", style="dim"))
    return lines


def _running(trial: RunningTrial, width: int, unicode: bool) -> Text:
    text = Text.assemble((f"  #{trial.number:<5}", "bold"), f"{clock_text(trial.seconds):>7}  ")
    if trial.waits:
        return text.append(f"waits for {trial.waits}", _NOTE)
    cells = max(6, min(40, width // 5))
    text.append(f"{sparkline(trial.values, cells, unicode=unicode):<{cells}}")
    if trial.values:
        text.append(f"  {number_text(trial.values[-1]):<10}")
        text.append(f" step {trial.step if trial.step is not None else '-'}")
    if trial.attempt > 1:
        text.append(f"  attempt {trial.attempt}", _NOTE)
    if trial.note:
        text.append(f"  {trial.note}", _NOTE)
    return text.append(f"  {params_text(trial.params)}", "dim")


def _cut(text: str, width: int) -> str:
    """A long name with its middle left out."""
    if len(text) <= width:
        return text
    head = (width - 3) // 2
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"
