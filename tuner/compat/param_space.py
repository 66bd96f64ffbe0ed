"""Ray Tune's ``param_space`` in Optuna's terms: what its parameters are drawn from, and a trial's config.

A parameter's name is its path, as in Ray's own results: ``{"model": {"lr": tune.uniform(0, 1)}}`` has
``model/lr``. The parameters that every trial has are known to the driver before a trial starts; those
that a ``tune.sample_from`` or a ``tune.choice`` brings along are asked for when it does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tuner.errors import BadObjective

if TYPE_CHECKING:
    from tuner.trial import Trial

__all__ = ["config_of", "distributions"]

Path = tuple[Any, ...]

_PLAIN = (str, int, float, bool, type(None))
_LEVELS = 20  # of what a parameter may bring along


def distributions(param_space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """What each parameter that every trial has is drawn from.

    Raises:
        BadObjective: names the parameter that Optuna has no distribution for, and what to write instead.
    """
    return {one.name: one.distribution for one in _open(param_space)[0]}


def config_of(param_space: Mapping[str, Any], trial: Trial) -> dict[str, Any]:
    """The config of a trial: each parameter suggested, each ``sample_from`` called.

    What a ``sample_from`` gave is kept as a user attribute of its name, where it is a plain value.

    Raises:
        BadObjective: see :func:`distributions`; or ``sample_from`` functions that wait for each other.
    """
    config = copy.deepcopy(dict(param_space))
    used: set[str] = set()
    for _ in range(_LEVELS):
        parameters, functions = _open(config)
        if not parameters and not functions:
            return config
        for one in parameters:
            name = one.name
            while name in used:  # a choice between ranges: its own name is that of the choice
                name += "/value"
            used.add(name)
            _assign(config, one.path, one.meant(_suggest(trial, name, one.distribution)))
        for path, value in _call(functions, config):
            _assign(config, path, value)
            if isinstance(value, _PLAIN):
                trial.set_user_attr(_name(path), value)
    raise BadObjective(f"param_space: what its functions give holds another to call, {_LEVELS} times over")


@dataclass(frozen=True, kw_only=True)
class _Parameter:
    """A parameter of Ray's: the keys that lead to it, what is drawn, what the trainable gets for that."""

    path: Path
    distribution: BaseDistribution
    meant: Callable[[Any], Any] = lambda drawn: drawn

    @property
    def name(self) -> str:
        return _name(self.path)


def _name(path: Path) -> str:
    return "/".join(map(str, path))


def _open(config: Mapping[str, Any]) -> tuple[list[_Parameter], list[tuple[Path, Any]]]:
    """What is still to be drawn of a config, and the functions that are still to be called."""
    from ray.tune.search.variant_generator import parse_spec_vars

    _, domains, grids = parse_spec_vars(dict(config))
    if grids:
        raise BadObjective(
            f"param_space: {_name(grids[0][0])!r} is a grid_search, which a sampler cannot draw from; write "
            'tune.choice([...]), and sampler="bruteforce" to try each combination once'
        )
    functions = [(path, domain) for path, domain in domains if domain.is_function()]
    return [_parameter(path, domain) for path, domain in domains if not domain.is_function()], functions


def _parameter(path: Path, domain: Any) -> _Parameter:
    from ray.tune.search import sample

    sampler, q = domain.get_sampler(), None
    if isinstance(sampler, sample.Quantized):
        q, sampler = sampler.q, sampler.sampler
    log = isinstance(sampler, sample.LogUniform)
    if log or isinstance(sampler, sample.Uniform):
        match domain:
            case sample.Float(lower=lower, upper=upper):
                return _float(path, lower, upper, q, log)
            case sample.Integer(lower=lower, upper=upper):
                return _integer(path, lower, upper, None if q is None else int(q), log)
            case sample.Categorical(categories=categories):
                return _choice(path, categories)
    advice = "give it bounds with tune.uniform, or draw it yourself with tune.sample_from"
    if isinstance(sampler, sample.Normal):
        raise BadObjective(f"param_space: {_name(path)!r} is a randn, which Optuna does not know; {advice}")
    raise BadObjective(f"param_space: {_name(path)!r} is {type(domain).__name__} of {sampler}; {advice}")


def _float(path: Path, lower: float, upper: float, q: float | None, log: bool) -> _Parameter:
    if q is None or log:
        return _Parameter(
            path=path,
            distribution=FloatDistribution(lower, upper, log=log),
            meant=_rounded(q, lower, upper) if q else float,
        )
    return _Parameter(path=path, distribution=FloatDistribution(lower, upper, step=q))


def _integer(path: Path, lower: int, upper: int, q: int | None, log: bool) -> _Parameter:
    """Ray's upper bound is left out; with a q other than 1 the bounds are multiples of it, both within."""
    if q is None or q == 1:
        return _Parameter(path=path, distribution=IntDistribution(lower, upper - 1, log=log))
    low, high = math.ceil(lower / q) * q, math.floor(upper / q) * q
    if log:  # Optuna's has no step
        return _Parameter(
            path=path, distribution=IntDistribution(low, high, log=True), meant=_rounded(q, low, high)
        )
    return _Parameter(path=path, distribution=IntDistribution(low, high, step=q))


def _rounded(q: float, low: float, high: float) -> Callable[[float], float]:
    return lambda drawn: min(max(round(drawn / q) * q, low), high)


def _choice(path: Path, categories: Sequence[Any]) -> _Parameter:
    """A database keeps plain values only; anything else goes by its text, or by its place in the list."""
    if all(isinstance(one, _PLAIN) for one in categories):
        return _Parameter(path=path, distribution=CategoricalDistribution(categories))
    labels: list[Any] = [_label(one) for one in categories]
    if None in labels or len(set(labels)) < len(labels):
        labels = list(range(len(categories)))
    meant = dict(zip(labels, categories, strict=True))
    return _Parameter(path=path, distribution=CategoricalDistribution(labels), meant=meant.__getitem__)


def _label(category: Any) -> str | None:
    """A text that is the same in every process, if there is one."""
    text = getattr(category, "__qualname__", None) or repr(category)
    return text if " at 0x" not in text and len(text) <= 100 else None


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_float(name, low, high, step=step, log=log)
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
    raise AssertionError(distribution)


class _Waits(Exception):
    """A ``sample_from`` reads what another one is still to give."""


class _Config(dict[str, Any]):
    """The config as a ``sample_from`` sees it: what is not there yet cannot be read."""

    def __getitem__(self, key: str) -> Any:
        from ray.tune.search.sample import Domain

        value = super().__getitem__(key)
        if isinstance(value, Domain):
            raise _Waits(key)
        return _Config(value) if isinstance(value, dict) else value


def _call(functions: list[tuple[Path, Any]], config: dict[str, Any]) -> list[tuple[Path, Any]]:
    """What the functions of one level give; each sees what those that it reads have given."""
    from ray.tune.search.variant_generator import RecursiveDependencyError

    given: list[tuple[Path, Any]] = []
    while functions:
        waiting = []
        for path, function in functions:
            try:
                value = function.sample(_Config(config))
            except (_Waits, RecursiveDependencyError):
                waiting.append((path, function))
                continue
            _assign(config, path, value)
            given.append((path, value))
        if len(waiting) == len(functions):
            names = " and ".join(repr(_name(path)) for path, _ in waiting)
            raise BadObjective(
                f"param_space: the sample_from of {names} read each other's value, or their own"
            )
        functions = waiting
    return given


def _assign(config: dict[str, Any], path: Path, value: Any) -> None:
    from ray.tune.search.variant_generator import assign_value

    assign_value(config, path, value)
