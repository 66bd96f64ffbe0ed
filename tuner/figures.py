"""``tuner.plot``: Optuna's figures of a study by a short name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from tuner.errors import BadInput

__all__ = ["KINDS", "plot"]

KINDS: Mapping[str, str] = {
    "contour": "plot_contour",
    "edf": "plot_edf",
    "history": "plot_optimization_history",
    "hypervolume": "plot_hypervolume_history",
    "importance": "plot_param_importances",
    "intermediate": "plot_intermediate_values",
    "parallel": "plot_parallel_coordinate",
    "pareto": "plot_pareto_front",
    "rank": "plot_rank",
    "slice": "plot_slice",
    "terminator": "plot_terminator_improvement",
    "timeline": "plot_timeline",
}
"""Names of figures, and Optuna's functions in ``optuna.visualization``."""


def plot(
    study: optuna.Study | Sequence[optuna.Study],
    kind: str = "history",
    *,
    backend: str | None = None,
    **options: Any,
) -> Any:
    """One of Optuna's figures of a study.

    Args:
        study: of ours or of Optuna's; ``"history"`` and ``"edf"`` take several.
        kind: a name of :data:`KINDS`, or of Optuna's function without its ``plot_``.
        backend: ``"plotly"`` (interactive; ``pip install plotly``) or ``"matplotlib"``; None: plotly where
            it is installed.
        options: of Optuna's function, such as ``params=["lr"]`` or, of several objectives,
            ``target=lambda trial: trial.values[0]``.

    Returns:
        A figure of plotly or of matplotlib: the last line of a cell shows it, ``write_html`` or
        ``savefig`` keeps it.

    Raises:
        BadInput: no such figure or backend; the near name is suggested. Or Optuna refuses the study or the
            options, in its words: ``"pareto"`` needs two or three objectives, and ``"hypervolume"`` a
            ``reference_point=[...]``.

    Example:
        >>> study = optuna.create_study()
        >>> study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        >>> plot(study, "slice", params=["x"], backend="matplotlib").savefig("slice.png")
    """
    name, uses_plotly = _function(kind), _backend(backend) == "plotly"
    try:
        with warnings.catch_warnings():
            # Optuna says of many figures that they are experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _interactive(name, study, options) if uses_plotly else _still(name, study, options)
    except (TypeError, ValueError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        options_of = f"its options are those of optuna.visualization.{name}"
        raise BadInput(f"the figure {kind!r} cannot be drawn: {said}; {options_of}") from error


def _interactive(name: str, study: Any, options: Mapping[str, Any]) -> Any:
    return getattr(importlib.import_module("optuna.visualization"), name)(study, **options)


def _still(name: str, study: Any, options: Mapping[str, Any]) -> Any:
    import matplotlib
    import matplotlib.pyplot as plt

    with matplotlib.rc_context():  # Optuna sets a style for the whole process
        axes = getattr(importlib.import_module("optuna.visualization.matplotlib"), name)(study, **options)
        while not hasattr(axes, "figure"):  # one, or an array of them
            axes = axes[0]
        figure = axes.figure
    plt.close(figure)  # else a notebook shows it twice
    return figure


def _function(kind: str) -> str:
    known = {**KINDS, **{name.removeprefix("plot_"): name for name in KINDS.values()}}
    found = known.get(kind.removeprefix("plot_")) if isinstance(kind, str) else None
    if found is None:
        near = difflib.get_close_matches(str(kind), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(KINDS)}"
        raise BadInput(f"there is no figure {kind!r}; {hint}")
    return found


def _backend(given: str | None) -> str:
    has_plotly = importlib.util.find_spec("plotly") is not None
    if given is None:
        return "plotly" if has_plotly else "matplotlib"
    if given not in ("plotly", "matplotlib"):
        raise BadInput(f"backend={given!r}: choose 'plotly' or 'matplotlib'")
    if given == "plotly" and not has_plotly:
        raise BadInput(
            "backend='plotly': it is not installed; 'pip install plotly', or leave the backend out"
        )
    return given
