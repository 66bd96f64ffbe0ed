"""What a trial and a report cost a driver as its study grows: the points, and their picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RESULTS", "Point", "draw", "keep"]

RESULTS = Path(__file__).with_name("results")
"""The folder of what was measured last."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """CPU seconds of the driver for a ``trial`` and a ``report``, in a study of so many ``trials``."""

    trials: int
    trial: float
    report: float


def keep(points: Sequence[Point], folder: Path = RESULTS) -> None:
    """Write the points as JSON, and their picture beside it."""
    folder.mkdir(exist_ok=True)
    values = [dataclasses.asdict(point) for point in points]
    (folder / "growth.json").write_text(json.dumps(values, indent=2) + "\n")
    draw(points, folder / "growth.png")


def draw(points: Sequence[Point], file: Path) -> None:
    """The picture: one panel each, from 0 up, so that what is flat looks flat."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    trials = [point.trials for point in points]
    for panel, name, values in (
        (panels[0], "ms of CPU for a trial", [1e3 * point.trial for point in points]),
        (panels[1], "µs of CPU for a report", [1e6 * point.report for point in points]),
    ):
        panel.plot(trials, values, marker="o", color="#2c5d9b")
        panel.set(xscale="log", xlabel="trials in the study", title=name, ylim=(0, 1.25 * max(values)))
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)
