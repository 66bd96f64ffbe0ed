"""A run on the terminal: one view that is redrawn in place, or plain lines where that is no use.

The display measures what each frame costs and waits a hundred times as long before the next
one, so that it takes about one percent of the driver's time on any machine.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from tuner.snapshot import RunningTrial, Snapshot

__all__ = ["Redraw", "TerminalProgress", "clock_text", "number_text", "params_text", "sparkline"]

FRAME_EVERY = 0.2  # seconds at least between frames
LINE_EVERY = 5.0  # seconds at least between plain lines
SHARE = 100  # a frame that took t seconds is followed by at least SHARE * t without one,
LONGEST = 5.0  # but by no more than this: a slow frame on a busy machine is no reason to stand still
_BARS = "▁▂▃▄▅▆▇█"
_FINISHED = ("COMPLETE", "PRUNED", "FAIL")
_BESIDE = 8  # lines of a frame that are not running trials


class TerminalProgress:
    """Implements :class:`tuner.snapshot.Progress` for people at a terminal.

    Args:
        file: where to write; standard error by default. If it is no terminal, a plain line
            appears when something has changed, every few seconds at most.
        clock: seconds that only grow; a test gives its own.
    """

    def __init__(self, file: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file if file is not None else sys.stderr
        self._clock = clock
        self._redraw = Redraw(self._file) if self._file.isatty() else None
        self._next = -math.inf
        self._last: object = None
        self._closed = False

    def update(self, snapshot: Snapshot) -> None:
        """Show this moment, unless the last one was shown too short a time ago."""
        began = self._clock()
        if began < self._next or self._closed:
            return
        if self._redraw is not None:
            self._redraw.draw(frame(snapshot, max_running=max(1, self._redraw.height - _BESIDE)))
            every = FRAME_EVERY
        else:
            seen = (dict(snapshot.states), snapshot.best_number, snapshot.phase)
            if seen == self._last:
                return
            self._last = seen
            print(line(snapshot), file=self._file, flush=True)
            every = LINE_EVERY
        ended = self._clock()
        self._next = ended + max(every, min(LONGEST, SHARE * (ended - began)))

    def close(self, snapshot: Snapshot | None, message: str) -> None:
        """Show the last moment and how the run ended. Can be called twice; the first counts."""
        if self._closed:
            return
        self._closed = True
        said = (message.strip().splitlines() or [""])[0]
        if self._redraw is not None:
            if snapshot is not None:
                self._redraw.draw(frame(snapshot, max_running=0))
            self._redraw.finish()
        elif snapshot is not None:
            print(line(snapshot), file=self._file)
        if said:
            print(said, file=self._file, flush=True)


class Redraw:
    """A block of lines at the end of a terminal that is drawn again in place.

    What else is printed meanwhile, through ``sys.stdout`` or ``sys.stderr``, appears above it.
    The cursor stays visible, so nothing is left to repair when a process is killed.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._console = Console(file=file, highlight=False)
        self._text = ""
        self._lines = 0
        self._before: dict[str, TextIO] = {}

    @property
    def height(self) -> int:
        """Lines of the terminal."""
        return self._console.height

    def draw(self, lines: Sequence[Text]) -> None:
        """Show these lines in place of the last ones, cut at the right edge."""
        self._redirect()
        shown = lines[: max(1, self.height - 1)]
        with self._console.capture() as captured:
            for one in shown:
                self._console.print(one, no_wrap=True, overflow="ellipsis", crop=True)
        self._write(self._erase() + captured.get())
        self._text, self._lines = captured.get(), len(shown)

    def finish(self) -> None:
        """Leave the last lines where they are, and standard output as it was."""
        for name, stream in self._before.items():
            if isinstance(getattr(sys, name), _Above):
                setattr(sys, name, stream)
        self._before.clear()
        self._text, self._lines = "", 0

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """The block is away from the terminal while other text is written."""
        self._write(self._erase())
        yield
        self._write(self._text)

    def _erase(self) -> str:
        return f"\x1b[{self._lines}F\x1b[J" if self._lines else ""

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def _redirect(self) -> None:
        if self._before:
            return
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                self._before[name] = stream
                setattr(sys, name, _Above(stream, self))


class _Above:
    """A standard stream whose whole lines are written above the block."""

    def __init__(self, stream: TextIO, block: Redraw) -> None:
        self._stream = stream
        self._block = block
        self._rest = ""

    def write(self, text: str) -> int:
        whole, newline, self._rest = (self._rest + text).rpartition("\n")
        if newline:
            with self._block.aside():
                self._stream.write(whole + newline)
                self._stream.flush()
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# ---------------------------------------------------------------------- what is shown


def frame(snapshot: Snapshot, *, max_running: int) -> list[Text]:
    """The lines of the live view."""
    lines = [_heading(snapshot), _bar(snapshot), _counters(snapshot), _best(snapshot)]
    running = sorted(snapshot.running, key=lambda trial: trial.number)
    lines += [_running(trial) for trial in running[:max_running]]
    hidden = len(running) - max_running
    if max_running and hidden > 0:
        lines.append(Text(f"  and {hidden} more running", style="dim"))
    if snapshot.reasons:
        lines.append(Text(f"  failures  {_failures(snapshot)}", style="red"))
    return lines


def line(snapshot: Snapshot) -> str:
    """The moment in one plain line, for a log."""
    states = snapshot.states
    of = f"/{snapshot.n_trials}" if snapshot.n_trials is not None else ""
    text = (
        f"{snapshot.study}: {_finished(snapshot)}{of} finished ({states.get('COMPLETE', 0)} complete, "
        f"{states.get('PRUNED', 0)} pruned, {states.get('FAIL', 0)} failed), {len(snapshot.running)} running"
    )
    if snapshot.best is not None:
        text += f", best {number_text(snapshot.best)} (trial {snapshot.best_number})"
    left = seconds_left(snapshot)
    if left:
        text += f", {clock_text(left)} left"
    if snapshot.reasons:
        text += f"; failures: {_failures(snapshot)}"
    return text if snapshot.phase == "running" else f"{text}; {snapshot.phase}"


def seconds_left(snapshot: Snapshot) -> float | None:
    """Seconds to the end of the budget at the rate of this run so far; None where nobody can say."""
    if snapshot.n_trials is None or snapshot.finished_here < 1:
        return None
    missing = max(0, snapshot.n_trials - _finished(snapshot))
    return missing * snapshot.seconds / snapshot.finished_here


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """A curve in one line of text; the newest values where there are more than ``width``.

    A value that is not finite is a gap.

    Example:
        >>> sparkline([0.0, 0.5, 1.0])
        '▁▅█'
    """
    shown = list(values)[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return " " * len(shown)
    low, high = min(finite), max(finite)
    # halved first: the difference of two huge values may be no finite number
    span = high / 2 - low / 2
    levels = len(_BARS) - 1
    text = ""
    for value in shown:
        if not math.isfinite(value):
            text += " "
        elif not span:
            text += _BARS[levels // 2]
        else:
            text += _BARS[math.floor((value / 2 - low / 2) / span * levels + 0.5)]
    return text


def number_text(value: float | None) -> str:
    """A number for people: six digits that count, ``-`` for none."""
    return "-" if value is None else f"{value:.6g}"


def clock_text(seconds: float) -> str:
    """Seconds as ``0:07``, ``12:34`` or ``1:02:03``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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


def _heading(snapshot: Snapshot) -> Text:
    text = Text.assemble((snapshot.study, "bold"), (f"  {', '.join(snapshot.directions)}", "dim"))
    if snapshot.cluster:
        text.append(f"  on {snapshot.cluster}", "dim")
    said = {
        "paused": "  paused: running trials go on, nothing new starts",
        "draining": "  draining: running trials finish, nothing new starts",
        "interrupting": "  interrupting: running trials checkpoint; press Ctrl-C again to end them at once",
    }.get(snapshot.phase)
    if said:
        text.append(said, "yellow")
    return text


def _bar(snapshot: Snapshot) -> Text:
    done = _finished(snapshot)
    text = Text("  ")
    if snapshot.n_trials:
        cells = 30
        filled = min(cells, cells * done // snapshot.n_trials)
        text.append("━" * filled, "green").append("━" * (cells - filled), "dim")
        text.append(f"  {done}/{snapshot.n_trials} trials")
    else:
        text.append(f"{done} trials finished")
    text.append(f"  {clock_text(snapshot.seconds)} elapsed")
    left = seconds_left(snapshot)
    if left is not None:
        text.append(f"  {clock_text(left)} left")
    if snapshot.finished_here and snapshot.seconds > 0:
        text.append(f"  {60 * snapshot.finished_here / snapshot.seconds:.3g} trials/min", "dim")
    return text


def _counters(snapshot: Snapshot) -> Text:
    states = snapshot.states
    text = Text.assemble(
        "  done ",
        (str(states.get("COMPLETE", 0)), "bold green"),
        "  running ",
        (f"{len(snapshot.running)}/{snapshot.slots}", "bold cyan"),
        "  pruned ",
        (str(states.get("PRUNED", 0)), "bold yellow"),
        "  failed ",
        (str(states.get("FAIL", 0)), "bold red" if states.get("FAIL", 0) else "bold"),
    )
    for name, count in (("retrying", snapshot.retrying), ("enqueued", states.get("WAITING", 0))):
        if count:
            text.append(f"  {name} {count}")
    return text


def _best(snapshot: Snapshot) -> Text:
    if snapshot.best is None:
        single = len(snapshot.directions) == 1
        return Text("  best -" if single else "  several objectives: 'tuner best' shows the front", "dim")
    return Text.assemble(
        "  best ",
        (number_text(snapshot.best), "bold green"),
        f"  trial {snapshot.best_number}  ",
        (params_text(snapshot.best_params), "dim"),
    )


def _running(trial: RunningTrial) -> Text:
    text = Text.assemble((f"  #{trial.number:<5}", "cyan"), f"{clock_text(trial.seconds):>7}  ")
    if trial.waits:
        return text.append(f"waits for {trial.waits}", "yellow")
    text.append(f"{sparkline(trial.values):<16}", "cyan")
    if trial.values:
        text.append(f"  {number_text(trial.values[-1]):<10}")
        text.append(f" step {trial.step if trial.step is not None else '-'}")
    if trial.attempt > 1:
        text.append(f"  attempt {trial.attempt}", "yellow")
    return text.append(f"  {params_text(trial.params)}", "dim")
