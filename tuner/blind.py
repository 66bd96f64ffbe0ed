"""What a RandomSampler draws: it looks at no other trial, so that anybody may draw for it, at any time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution, _get_single_value
from optuna.samplers import BaseSampler

from tuner.samplers import reseed
from tuner.seeds import derived_seed

__all__ = ["Draws", "is_blind", "random_draw"]


def is_blind(given: BaseSampler) -> bool:
    """Whether a sampler looks at no other trial: what it draws is the same however early it is asked."""
    return type(given) is optuna.samplers.RandomSampler


def random_draw(study_seed: int, number: int, name: str, distribution: BaseDistribution) -> Any:
    """What a RandomSampler of the study draws for a parameter of a trial, wherever it is asked."""
    drawing = optuna.samplers.RandomSampler()
    reseed(drawing, derived_seed(study_seed, number, name))
    return drawing.sample_independent(None, None, name, distribution)  # type: ignore[arg-type]


class Draws:
    """The draws of a RandomSampler from one space, trial by trial: the very numbers that it draws when it is
    asked for a parameter at a time, without its preparations for each.

    Args:
        sampler: whose generator is used, and seeded by the caller.
    """

    def __init__(self, sampler: BaseSampler, space: Mapping[str, BaseDistribution]) -> None:
        assert isinstance(sampler, optuna.samplers.RandomSampler)
        self._sampler, self._space = sampler, dict(space)
        self._single = {name: _get_single_value(dist) for name, dist in space.items() if dist.single()}
        many = {name: dist for name, dist in space.items() if name not in self._single}
        self._way = _SearchSpaceTransform(many) if many else None

    def __iter__(self) -> Iterator[tuple[str, BaseDistribution, float]]:
        """A draw: name, distribution and value in internal representation of each parameter, in order."""
        drawn: dict[str, Any] = {}
        if self._way is not None:
            bounds = self._way.bounds
            drawn = self._way.untransform(self._sampler._rng.rng.uniform(bounds[:, 0], bounds[:, 1]))
        for name, dist in self._space.items():
            value = self._single[name] if name in self._single else drawn[name]
            yield name, dist, float(dist.to_internal_repr(value))
