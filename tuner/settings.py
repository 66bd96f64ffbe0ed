"""What ``optimize`` was called with, as plain data that the store keeps for ``resume``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution

from tuner import runtime_env
from tuner.errors import BadInput
from tuner.resources import Resources, ResourcesSpec, alternatives, from_plain, to_plain
from tuner.retry import Retry

__all__ = ["Settings"]

EXECUTORS = ("ray", "inline")
ISOLATIONS = ("attempt", "shared")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run; see :func:`tuner.optimize` for their meaning.

    Attributes:
        space: distributions by name; None where there is none, or a function (kept as
            ``space_is_function``, since code is not stored).

    Raises:
        BadInput: a value is out of range; the message names it.
    """

    n_trials: int | None = None
    timeout: float | None = None
    space: Mapping[str, BaseDistribution] | None = None
    space_is_function: bool = False
    resources: ResourcesSpec = field(default_factory=Resources)
    max_concurrent: int | None = None
    retry: Retry = field(default_factory=Retry)
    trial_timeout: float | None = None
    stall_timeout: float | None = None
    resource_timeout: float | None = 3600.0
    checkpoints: str | None = None
    address: str | None = None
    executor: str = "ray"
    isolation: str = "attempt"
    env: tuple[str, ...] = ()
    runtime_env: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("n_trials", "max_concurrent"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise BadInput(f"{name}={value!r}: give a whole number of at least 1")
        alternatives(self.resources)
        for name in ("timeout", "trial_timeout", "stall_timeout", "resource_timeout"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise BadInput(f"{name}={value!r}: give seconds above 0, or None")
        for name, known in (("executor", EXECUTORS), ("isolation", ISOLATIONS)):
            if getattr(self, name) not in known:
                raise BadInput(f"{name}={getattr(self, name)!r}: choose {' or '.join(map(repr, known))}")
        if isinstance(self.env, str) or not all(isinstance(name, str) for name in self.env):
            raise BadInput(f'env={self.env!r}: give names of environment variables, such as ("AWS_*",)')
        for name in self.env:
            if "=" in name:
                raise BadInput(f"env={name.split('=')[0]!r}=...: give the name only; values are never stored")
        object.__setattr__(self, "runtime_env", runtime_env.checked(self.runtime_env))

    @property
    def at_once(self) -> int | None:
        """Trials that can run at the same time at most; None where only the cluster bounds them."""
        return min((one for one in (self.max_concurrent, self.n_trials) if one is not None), default=None)

    def to_json(self) -> str:
        """The settings as JSON; no code and no values of environment variables."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        fields["resources"] = to_plain(self.resources)
        fields["retry"] = json.loads(self.retry.to_json())
        if self.space is not None:
            fields["space"] = {name: distribution_to_json(dist) for name, dist in self.space.items()}
        return json.dumps(fields)

    @classmethod
    def from_mapping(cls, stored: Mapping[str, Any]) -> Settings:
        """The settings that :meth:`to_json` wrote; fields of a newer version are ignored."""
        known = {item.name for item in dataclasses.fields(cls)}
        fields = {name: value for name, value in stored.items() if name in known}
        if "resources" in fields:
            fields["resources"] = from_plain(fields["resources"])
        if "retry" in fields:
            fields["retry"] = Retry.from_json(json.dumps(fields["retry"]))
        if fields.get("space") is not None:
            fields["space"] = {name: json_to_distribution(text) for name, text in fields["space"].items()}
        if "env" in fields:
            fields["env"] = tuple(fields["env"])
        return cls(**fields)
