"""Tuner: an Optuna study on a cluster, with nothing lost when anything is killed.

::

    study = tuner.create_study("digits", storage="sqlite:///tuner.db", direction="maximize")
    tuner.optimize(study, objective, n_trials=100)

The public names below are all there is; each is imported when it is first used, so that
``import tuner`` itself costs milliseconds.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from tuner.shadow import check_path

if TYPE_CHECKING:
    from tuner import compat as compat
    from tuner import exporters as exporters
    from tuner import lightning as lightning
    from tuner import torch as torch
    from tuner.checkpoint import Checkpoint, load_checkpoint
    from tuner.errors import (
        BadCheckpoint,
        BadInput,
        BadMetric,
        BadObjective,
        CheckpointNotSaved,
        ClusterUnavailable,
        Infeasible,
        Interrupted,
        ProgramFailed,
        StoreUnavailable,
        StudyExists,
        StudyHeld,
        StudyNotFound,
        StudyStopped,
        TunerError,
    )
    from tuner.figures import plot
    from tuner.optimization import optimize, resume
    from tuner.program import Program
    from tuner.recipe import Recipe
    from tuner.resources import Resources
    from tuner.retry import Again, Retry
    from tuner.sharing import shared
    from tuner.simulation import Faults, Simulation, simulate
    from tuner.studies import best_checkpoint, create_study, load_study
    from tuner.trial import Trial

__version__ = "0.1.0"

__all__ = [
    "Again",
    "BadCheckpoint",
    "BadInput",
    "BadMetric",
    "BadObjective",
    "Checkpoint",
    "CheckpointNotSaved",
    "ClusterUnavailable",
    "Faults",
    "Infeasible",
    "Interrupted",
    "Program",
    "ProgramFailed",
    "Recipe",
    "Resources",
    "Retry",
    "Simulation",
    "StoreUnavailable",
    "StudyExists",
    "StudyHeld",
    "StudyNotFound",
    "StudyStopped",
    "Trial",
    "TunerError",
    "best_checkpoint",
    "create_study",
    "load_checkpoint",
    "load_study",
    "optimize",
    "plot",
    "resume",
    "shared",
    "simulate",
]

_HOMES = {
    "tuner.checkpoint": ("Checkpoint", "load_checkpoint"),
    "tuner.figures": ("plot",),
    "tuner.optimization": ("optimize", "resume"),
    "tuner.program": ("Program",),
    "tuner.recipe": ("Recipe",),
    "tuner.resources": ("Resources",),
    "tuner.retry": ("Again", "Retry"),
    "tuner.sharing": ("shared",),
    "tuner.simulation": ("Faults", "Simulation", "simulate"),
    "tuner.studies": ("best_checkpoint", "create_study", "load_study"),
    "tuner.trial": ("Trial",),
}
_PACKAGES = ("compat", "exporters", "lightning", "torch")
"""Not in ``__all__``: a star import must not put ours in the place of PyTorch."""

_HOME = {name: module for module, names in _HOMES.items() for name in names}


check_path()  # storage, objectives and dashboard are common names
if "IPython" in sys.modules:
    from tuner import notebook

    notebook.register()


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"tuner.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'tuner' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME.get(name, "tuner.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES, "__version__"])
