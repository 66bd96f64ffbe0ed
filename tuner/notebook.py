"""Studies, trials and the progress of a run as a notebook shows them.

``import tuner`` in IPython tells it how to show Optuna's own types: no subclass takes their place, so that
``isinstance``, pickling and what plain Optuna returns stay as they are. Colours are the page's own, which
may be light or dark.
"""

from __future__ import annotations

import html
import io
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

    from tuner.snapshot import Snapshot

__all__ = [
    "NotebookProgress",
    "is_here",
    "progress_bundle",
    "register",
    "study_html",
    "study_text",
    "trial_html",
]

FRAME_EVERY = 0.5  # seconds at least between frames: each is sent to a browser
RUNNING = 12  # running trials of a frame
WIDTH, HEAD = 160, 7  # cells of a frame's lines, and how many of them say other things
BEST = 5  # trials of a study's table
COLUMNS = 10  # parameters of a study's table
LONGEST = 80  # characters of a cell
# Solarized's accents, which can be read on a light and on a dark page: black, red, green, yellow, ...
COLOURS = [
    (88, 110, 117),
    (220, 50, 47),
    (112, 138, 0),
    (181, 137, 0),
    (38, 139, 210),
    (211, 54, 130),
    (42, 161, 152),
    (127, 127, 127),
]


def is_here() -> bool:
    """Whether this process is the kernel of a notebook."""
    return getattr(_shell(), "kernel", None) is not None


def register() -> None:
    """Tell IPython, where it runs, how to show studies and trials."""
    shell = _shell()
    if shell is None:
        return
    forms = shell.display_formatter.formatters
    forms["text/html"].for_type_by_name("optuna.study.study", "Study", study_html)
    forms["text/html"].for_type_by_name("optuna.trial._frozen", "FrozenTrial", trial_html)
    forms["text/html"].for_type_by_name("optuna.trial._trial", "Trial", trial_html)
    forms["text/plain"].for_type_by_name(
        "optuna.study.study", "Study", lambda study, printer, cycle: printer.text(study_text(study))
    )


def study_text(study: optuna.Study) -> str:
    """A study in one line."""
    return "; ".join(f"{name} {text}" for name, text in _facts(study).items())


def study_html(study: optuna.Study) -> str:
    """A study as a table of facts and one of its best trials.

    Trials that break a constraint are left out of the best; of several objectives the Pareto front is shown.
    """
    trials = _best(study)
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    shown = names[:COLUMNS]
    values = (
        ["value"] if len(study.directions) == 1 else [f"value {at}" for at in range(len(study.directions))]
    )
    head = ["trial", *(study.metric_names or values), *shown, *(["..."] if len(names) > len(shown) else [])]
    rows = [
        [trial.number, *trial.values, *(trial.params.get(name, "") for name in shown)] for trial in trials
    ]
    table = _table(rows, head) if rows else ""
    return f"<div>{_table(_facts(study).items())}{table}</div>"


def trial_html(trial: optuna.trial.BaseTrial) -> str:
    """A trial, finished or running, as a table of facts and one of its parameters."""
    from optuna.trial import FrozenTrial

    facts = {"trial": str(trial.number)}
    if isinstance(trial, FrozenTrial):
        facts |= _outcome(trial)
    else:
        known = ("attempt", "rank", "world_size")
        facts |= {name: str(getattr(trial, name)) for name in known if hasattr(trial, name)}
    if attrs := trial.user_attrs:
        facts["user attributes"] = ", ".join(f"{name}={_cell(value)}" for name, value in attrs.items())
    params = _table(trial.params.items(), ["parameter", "value"]) if trial.params else ""
    return f"<div>{_table(facts.items())}{params}</div>"


class NotebookProgress:
    """Implements :class:`tuner.snapshot.Progress` in a cell's output: one display, which is updated in place.

    A frontend shows the terminal's live view; without one the last moment is kept, as plain text too.

    Args:
        clock: seconds that only grow; a test gives its own.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._handle: Any = None
        self._next = -math.inf
        self._closed = False

    def update(self, snapshot: Snapshot) -> None:
        """Show this moment, unless the last one was shown too short a time ago."""
        if self._closed or self._clock() < self._next:
            return
        self._show(snapshot, RUNNING)
        self._next = self._clock() + FRAME_EVERY

    def close(self, snapshot: Snapshot | None, message: str) -> None:
        """Show the last moment and how the run ended. Can be called twice; the first counts."""
        if not self._closed and snapshot is not None:
            self._show(snapshot, 0, (message.strip().splitlines() or [""])[0])
        self._closed = True

    def _show(self, snapshot: Snapshot, running: int, said: str = "") -> None:
        import IPython.display

        display: Any = IPython.display.display
        bundle = progress_bundle(snapshot, running, said)
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def progress_bundle(snapshot: Snapshot, running: int, said: str = "") -> dict[str, str]:
    """A moment of a run as the MIME types that a notebook can show."""
    from rich.console import Console
    from rich.terminal_theme import TerminalTheme
    from rich.text import Text

    from tuner.progress import frame

    lines = [*frame(snapshot, width=WIDTH, height=HEAD + running), *([Text(said)] if said else [])]
    # force_jupyter: else rich shows each line itself
    console = Console(
        file=io.StringIO(),
        record=True,
        width=WIDTH,
        force_terminal=True,
        force_jupyter=False,
        highlight=False,
    )
    for one in lines:
        console.print(one, no_wrap=True, overflow="ellipsis", crop=True)
    pre = '<pre style="font-family:monospace;line-height:normal;overflow-x:auto">{code}</pre>'
    theme = TerminalTheme((0, 0, 0), (127, 127, 127), COLOURS)
    return {
        "text/html": console.export_html(inline_styles=True, code_format=pre, theme=theme),
        "text/plain": "\n".join(one.plain.rstrip() for one in lines),
    }


# ---------------------------------------------------------------------- what is shown


def _shell() -> Any:
    found = sys.modules.get("IPython")
    return found.get_ipython() if found is not None and hasattr(found, "get_ipython") else None


def _facts(study: optuna.Study) -> dict[str, str]:
    counts: dict[str, int] = {}
    for trial in study.get_trials(deepcopy=False):
        counts[trial.state.name.lower()] = counts.get(trial.state.name.lower(), 0) + 1
    facts = {
        "study": study.study_name,
        "directions": ", ".join(one.name.lower() for one in study.directions),
        "trials": ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none yet",
        "sampler": type(study.sampler).__name__,
        "pruner": type(study.pruner).__name__,
    }
    best = _best(study)
    if best and len(study.directions) == 1:
        facts["best"] = f"{_cell(best[0].values[0])} of trial {best[0].number}"
    return facts


def _outcome(trial: optuna.trial.FrozenTrial) -> dict[str, str]:
    from tuner.progress import sparkline

    facts = {"state": trial.state.name}
    if trial.values is not None:
        facts["value" if len(trial.values) == 1 else "values"] = ", ".join(map(_cell, trial.values))
    if trial.duration is not None:
        facts["took"] = f"{trial.duration.total_seconds():.3g} s"
    if reports := trial.intermediate_values:
        curve = [value for _, value in sorted(reports.items())]
        facts["reports"] = (
            f"{sparkline(curve)} {_cell(curve[-1])} at step {max(reports)}, {len(curve)} in all"
        )
    return facts


def _best(study: optuna.Study) -> Sequence[optuna.trial.FrozenTrial]:
    """The best trials, those first that rank first; of several objectives some of the Pareto front."""
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    if len(study.directions) > 1:
        return study.best_trials[:BEST]
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    feasible = [trial for trial in done if all(value <= 0 for value in _constraints(trial).values())]
    return sorted(feasible, key=lambda trial: sign * trial.values[0])[:BEST]


def _constraints(trial: optuna.trial.FrozenTrial) -> Mapping[str, float]:
    return {key: value for key, value in trial.system_attrs.items() if key.startswith("constraints:")}


def _table(rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Text is to the left, numbers are to the right; every cell is escaped."""
    line = "border-bottom:1px solid rgba(128,128,128,.35);padding:.2em .8em;"
    first = "".join(f'<th style="{line}text-align:left">{_escaped(name)}</th>' for name in head)
    body = "".join(
        "<tr style='background:transparent'>"
        + "".join(
            f'<td style="{line}text-align:{"right" if isinstance(cell, float | int) else "left"}">'
            f"{_escaped(_cell(cell))}</td>"
            for cell in row
        )
        + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{first}</tr></thead>" if head else ""
    style = "border-collapse:collapse;color:inherit;background:transparent;margin:.3em 0"
    return f'<table style="{style}">{top}<tbody>{body}</tbody></table>'


def _escaped(text: str) -> str:
    return html.escape(text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}...")


def _cell(value: Any) -> str:
    from tuner.progress import number_text

    return number_text(value) if isinstance(value, float) else str(value)
