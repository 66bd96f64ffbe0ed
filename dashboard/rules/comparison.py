"""Several studies beside each other, as pure functions of what was read of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dashboard.rules import analysis
from dashboard.theme import value_text
from storage.columns import History
from storage.views import StudyDetail

__all__ = ["Best", "best_by_time", "best_by_trial", "differing", "failed_share", "setup"]

Best = list[tuple[int, float, float]]
"""Trial, place on the axis, best value up to there; where it improved, and the end."""

NOT_SET = "-"


def best_by_trial(history: History, direction: str) -> Best:
    """The best value by the number of the trial."""
    ordered = sorted(zip(history.numbers, history.values, strict=True))
    steps = analysis.best_so_far([value for _, value in ordered], direction)
    return [(ordered[place][0], float(ordered[place][0]), best) for place, best in steps]


def best_by_time(history: History, direction: str) -> Best:
    """The best value by seconds since the study's first trial started."""
    steps = analysis.best_so_far(history.values, direction)
    return [(history.numbers[place], history.seconds[place], best) for place, best in steps]


def failed_share(study: StudyDetail) -> float:
    """The share of failed trials among those that ended; NaN where none did."""
    return study.states.get("FAIL", 0) / study.finished if study.finished else math.nan


def setup(study: StudyDetail, space: Mapping[str, str]) -> dict[str, str]:
    """How a study is set up, flat: a text for each setting that has a value."""
    git = study.provenance.get("git") or {}
    plain = {
        "direction": ", ".join(study.directions),
        "sampler": study.sampler,
        "pruner": study.pruner,
        "seed": study.seed,
        "objective": _flat(study.objective or {}),
        "git": {"commit": git.get("commit"), "uncommitted": git.get("uncommitted_digest")},
        "host": study.provenance.get("host"),
        "python": study.provenance.get("python"),
        "packages": study.provenance.get("packages"),
        "cuda": study.provenance.get("cuda"),
        "space": space,
        **study.settings,
    }
    return _flat(plain)


def _flat(nested: Mapping[str, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{before}{key}."))
        elif isinstance(value, list | tuple):
            found[f"{before}{key}"] = ", ".join(map(value_text, value)) or NOT_SET
        elif value is not None and value != "":
            found[f"{before}{key}"] = value_text(value)
    return found


def differing(setups: Sequence[Mapping[str, str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of a setting and its text in each study: those that differ, and those that do not."""
    names = list(dict.fromkeys(name for one in setups for name in one))
    rows = [[name, *(one.get(name, NOT_SET) for one in setups)] for name in names]
    return (
        [row for row in rows if len(set(row[1:])) > 1],
        [row for row in rows if len(set(row[1:])) == 1],
    )
