"""TPE for long histories: Optuna's own suggestions, from arrays that grow with the study."""

from tuner.tpe.sampler import TPESampler

__all__ = ["TPESampler"]
