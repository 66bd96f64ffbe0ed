"""The README's table of ``make bench``, written from its results alone.

``python -m tests.benchmarks.readme`` writes it anew.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import machine
from tests.benchmarks.goals import Figure, Result, reached
from tests.benchmarks.growth import RESULTS
from tests.benchmarks.ratios import Spread
from tests.benchmarks.rows import FIGURES, NAMES

__all__ = ["BEGIN", "END", "README", "inserted", "keep", "lines"]

README = Path(__file__).parents[2] / "README.md"
FILE = RESULTS / "tuning.json"
BEGIN, END = "<!-- written by make bench -->\n", "<!-- the end of it -->\n"


def keep(results: Sequence[Result], file: Path = FILE, page: Path = README) -> None:
    """Write the table of the newest results of each figure on this machine, and keep these."""
    here = machine.described()
    before = json.loads(file.read_text()) if file.exists() else {}
    kept = before.get("results", []) if before.get("machine") == here else []
    new = {result.figure.key: dataclasses.asdict(result) for result in results}
    old = {one["figure"]["key"]: one for one in kept}
    found = [{**old, **new}[key] for key in FIGURES if key in old or key in new]
    file.parent.mkdir(exist_ok=True)
    said = {"machine": here, "results": found}
    file.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n")
    page.write_text(inserted(page.read_text(), said))


def inserted(page: str, said: Mapping[str, Any]) -> str:
    """A page with the table of a file's results between its marks.

    Raises:
        ValueError: it has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place for the table: {BEGIN.strip()} ... {END.strip()}")
    return f"{before}{BEGIN}\n{lines(said)}\n{END}{after}"


def lines(said: Mapping[str, Any]) -> str:
    """The machine, and a row for each work: what every side did, and each figure that it was held against."""
    results = [_result(one) for one in said["results"]]
    loads = [result.load for result in results if result.load is not None]
    load = (
        f"the load was {min(loads):.1f} to {max(loads):.1f} before each work"
        if loads
        else "the load is not known"
    )
    here = machine.in_words(said["machine"])
    medians = "medians, at the right of the ratio in each round"
    rows = [f"On {here}; Optuna with `n_jobs=1`; {medians}; {load}:", ""]
    rows += [
        f"| work | {' | '.join(NAMES.values())} | reached, to reach |",
        "| --- |" + " --- |" * (len(NAMES) + 1),
    ]
    for work, group in itertools.groupby(results, key=lambda result: result.figure.work):
        same = list(group)
        alone = {"Tuner": _middle(same[0])}  # where nobody else does it
        sides = [(same[0].sides or alone).get(side, "") for side in NAMES.values()]
        rows.append(f"| {work} | {' | '.join(sides)} | {'<br>'.join(map(_verdict, same))} |")
    return "\n".join(rows) + "\n"


def _verdict(result: Result) -> str:
    """As in ``31.0 times Optuna (≥ 11) ✓``."""
    figure = result.figure
    mark = {True: " ✓", False: " ✗", None: ""}[result.passed]
    aim = f" ({'≥' if figure.is_floor else '≤'} {figure.goal:g})" if figure.goal is not None else ""
    return _middle(result) + aim + mark


def _middle(result: Result) -> str:
    """The median with its unit."""
    return f"{reached(result).partition(' (')[0]} {result.figure.unit}".rstrip()


def _result(one: Mapping[str, Any]) -> Result:
    return Result(**{**one, "figure": Figure(**one["figure"]), "reached": Spread(**one["reached"])})


if __name__ == "__main__":
    README.write_text(inserted(README.read_text(), json.loads(FILE.read_text())))
