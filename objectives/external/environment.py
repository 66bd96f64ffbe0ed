"""What a program is told in its environment.

========================= ======================================================================
variable                  what it is
========================= ======================================================================
``TUNER_PARAMS``          all parameters, a JSON object
``TUNER_PARAM_NAME``      one parameter, as in the command; its name in capitals, ``_`` for other signs
``TUNER_STUDY``           name of the study
``TUNER_TRIAL``           number of the trial
``TUNER_ATTEMPT``         1 for the first try
``TUNER_SEED``            of the trial, the same in each attempt
``TUNER_FOLDER``          a folder that each attempt finds again: for checkpoints
``TUNER_METRICS``         where it writes its metrics: a file, a folder, or ``-`` for standard output
``CUDA_VISIBLE_DEVICES``  the GPUs that it was given, none where it has none
========================= ======================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import tuner
from objectives.external.template import shown

__all__ = ["check_names", "variables"]


def variables(trial: tuner.Trial, values: Mapping[str, Any], folder: str, metrics: str) -> dict[str, str]:
    """The variables of one attempt, apart from those that are there already."""
    return {
        "TUNER_PARAMS": json.dumps(dict(values)),
        **{_variable(name): shown(value) for name, value in values.items()},
        "TUNER_STUDY": trial.study.study_name,
        "TUNER_TRIAL": str(trial.number),
        "TUNER_ATTEMPT": str(trial.attempt),
        "TUNER_SEED": str(trial.seed),
        "TUNER_FOLDER": folder,
        "TUNER_METRICS": metrics,
    }


def check_names(names: Iterable[str]) -> None:
    """Refuse parameters whose variables would be the same.

    Raises:
        BadInput: names both.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_variable(name), name)
        if other != name:
            raise tuner.BadInput(
                f"parameters {other!r} and {name!r} would both be ${_variable(name)}; rename one"
            )


def _variable(name: str) -> str:
    return f"TUNER_PARAM_{re.sub(r'[^A-Za-z0-9]', '_', name).upper()}"
