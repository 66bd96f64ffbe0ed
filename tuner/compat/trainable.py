"""A function trainable of Ray Tune as an objective."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from numbers import Number
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution

from tuner.compat import param_space as spaces
from tuner.compat.ray_session import Ended, Session, in_place, require
from tuner.errors import BadInput, BadObjective

if TYPE_CHECKING:
    from tuner.trial import Trial

__all__ = ["RayTrainable", "ray_tune"]

_DIRECTIONS = {"min": "minimize", "max": "maximize"}


def ray_tune(
    trainable: Callable[[dict[str, Any]], Any],
    param_space: Mapping[str, Any] | None = None,
    *,
    metric: str,
    mode: str,
) -> RayTrainable:
    """A function trainable of Ray Tune as an objective, unchanged.

    ``tune.report`` reaches ``trial.report`` (the metric) and ``trial.log`` (all others that are numbers), its
    checkpoint is kept with the trial's, and ``tune.get_checkpoint`` gives the one that a retry starts from.
    The pruner takes the place of Ray's scheduler, and the study's sampler that of its search algorithm.

    Args:
        trainable: a function of the config; one wrapped by ``tune.with_parameters`` too. What
            ``tune.with_resources`` asks for is refused: :class:`tuner.Resources` says it here.
        param_space: what Ray's ``Tuner`` takes: domains of ``ray.tune``, nested, conditional by
            ``tune.sample_from``, and constants. Without ``tune.grid_search`` and ``tune.randn``.
        metric: the reported name that is the objective's value; the last report counts.
        mode: ``"min"`` or ``"max"``; the study's direction must say the same.

    Raises:
        BadObjective: not a function trainable, or a space that Optuna cannot draw from; names the parameter.

    Example:
        >>> from ray import tune
        >>> def train(config):
        ...     for epoch in range(3):
        ...         tune.report({"loss": (config["x"] - 2) ** 2 / (epoch + 1)})
        >>> objective = tuner.compat.ray_tune(train, {"x": tune.uniform(-5, 5)}, metric="loss", mode="min")
        >>> study = tuner.create_study("from-ray", storage="sqlite:///tuner.db", seed=1)
        >>> study = tuner.optimize(study, objective, n_trials=3, executor="inline")
        >>> len(study.best_trial.intermediate_values)
        3
    """
    require()
    return RayTrainable(trainable, param_space or {}, metric, mode)


class RayTrainable:
    """The objective that :func:`ray_tune` makes.

    Attributes:
        space: distributions by name of what every trial draws; ``tuner.optimize`` takes it from here.
        direction: ``"minimize"`` or ``"maximize"``, as the mode says.

    Example:
        >>> from ray import tune
        >>> space = {"lr": tune.loguniform(1e-4, 1e-1), "layers": tune.randint(1, 4)}
        >>> objective = tuner.compat.ray_tune(print, space, metric="acc", mode="max")
        >>> objective.direction
        'maximize'
        >>> objective.space["layers"]
        IntDistribution(high=3, log=False, low=1, step=1)
    """

    def __init__(
        self, trainable: Callable[..., Any], param_space: Mapping[str, Any], metric: str, mode: str
    ) -> None:
        if not callable(trainable) or inspect.isclass(trainable):
            shown = getattr(trainable, "__name__", repr(trainable))
            raise BadObjective(
                f"ray_tune: {shown} is not a function of the config; classes and trainers stay with Ray"
            )
        if getattr(trainable, "_resources", None) is not None:
            raise BadObjective(
                "ray_tune: leave tune.with_resources out, and give resources=tuner.Resources(...) to "
                "tuner.optimize, or --cpus and --gpus to 'tuner run'"
            )
        if mode not in _DIRECTIONS:
            raise BadObjective(f"ray_tune: mode={mode!r}: choose 'min' or 'max'")
        if not isinstance(metric, str) or not metric:
            raise BadObjective(f"ray_tune: metric={metric!r}: give the name that the trainable reports")
        if not isinstance(param_space, Mapping):
            raise BadObjective(f"ray_tune: param_space={param_space!r}: give a dict of ray.tune's domains")
        self.trainable, self.param_space, self.metric = trainable, param_space, metric
        self.direction = _DIRECTIONS[mode]
        self.space: dict[str, BaseDistribution] = spaces.distributions(param_space)
        with contextlib.suppress(AttributeError):
            functools.update_wrapper(self, trainable, updated=())

    def __call__(self, trial: Trial) -> float:
        """One attempt; the last value of the metric."""
        name = getattr(self.trainable, "__name__", "trainable")
        session = Session(trial, self.metric, name)
        config = spaces.config_of(self.param_space, trial)
        with in_place(session):
            try:
                self._run(config, session)
            except Ended as ended:
                if ended.pruned:
                    raise optuna.TrialPruned(f"at iteration {session.iteration}") from None
        if session.value is None and not trial.told_to_stop and trial.rank == 0:
            seen = ", ".join(sorted(session.seen)) or "nothing"
            raise BadInput(f"{name} never reported {self.metric!r}; it reported: {seen}")
        return session.value if session.value is not None else 0.0

    def _run(self, config: dict[str, Any], session: Session) -> None:
        """Call the trainable; what it returns or yields is reported, as in Ray."""
        given = self.trainable(config)
        for output in given if inspect.isgenerator(given) else [given]:
            if isinstance(output, Mapping):
                session.report(output)
            elif isinstance(output, Number):
                session.report({"_metric": output})
