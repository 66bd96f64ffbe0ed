"""How an objective is made again: the function that makes it, and what of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuner.errors import BadObjective

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An objective that needs no file: a function makes it of plain data, which the store keeps.

    It stands for the objective in :func:`tuner.optimize`. An objective that is an object has it as its
    attribute ``recipe``, and is then stored and sent as that.

    Args:
        factory: ``"package.module:function"``, which returns the objective.
        arguments: keyword arguments of the function, plain data.
        space: distributions by name, from which a study's parameters are drawn unless it is given another.

    Raises:
        BadObjective: the arguments are not plain data.

    Example:
        >>> Recipe(factory="objectives:command", arguments={"command": "./solver"}).factory
        'objectives:command'
    """

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, BaseDistribution] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            json.dumps(dict(self.arguments))
        except (TypeError, ValueError) as error:
            raise BadObjective(f"the arguments of {self.factory} are not plain data: {error}") from None
