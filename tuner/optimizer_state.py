"""The optimizer that CmaEsSampler keeps in its trials, read back without running what is in it.

It is a pickle in the attributes of a trial, which anybody may have written who can write to the
database. Only classes of cmaes and NumPy's arrays are made of it.
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Sequence
from typing import Any

from optuna.samplers import BaseSampler, CmaEsSampler
from optuna.trial import FrozenTrial

from tuner.errors import BadInput

__all__ = ["guard"]

_KNOWN = {
    ("cmaes._cma", "CMA"),
    ("cmaes._cmawm", "CMAwM"),
    ("cmaes._sepcma", "SepCMA"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
}


def guard(target: BaseSampler) -> None:
    """Let every CmaEsSampler inside a sampler read its optimizer in this way.

    Its next draw raises BadInput where something else is in the place of the optimizer.
    """
    if isinstance(target, CmaEsSampler):
        sampler: Any = target
        # a partial, not a closure: people pickle their samplers
        sampler._restore_optimizer = functools.partial(_restored, key=sampler._attr_key_optimizer)
    for inner in vars(target).values():
        if isinstance(inner, BaseSampler):
            guard(inner)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of one")
        return super().find_class(module, name)


def _restored(trials: Sequence[FrozenTrial], key: str) -> Any:
    """The newest optimizer of some trials, as Optuna's own method finds it; None without one."""
    for trial in reversed(trials):
        parts = [name for name in trial.system_attrs if name.startswith(key)]
        if not parts:
            continue
        try:
            text = "".join(trial.system_attrs[f"{key}:{at}"] for at in range(len(parts)))
            return _Unpickler(io.BytesIO(bytes.fromhex(text))).load()
        except Exception as error:
            raise BadInput(f"trial {trial.number} holds no optimizer of CmaEsSampler: {error}") from error
    return None
