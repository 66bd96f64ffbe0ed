"""What one trial needs of the cluster, and what it may be given instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuner.errors import BadInput

__all__ = [
    "FUNCTION",
    "TYPE",
    "Resources",
    "ResourcesSpec",
    "alternatives",
    "chosen",
    "described",
    "from_plain",
    "to_plain",
]

FUNCTION = "function"
"""What is kept of resources that are a function, which is code."""

TYPE = "accelerator_type:"
"""Ray's name of the resource that a node with such a device has begins so."""

_TINY = 0.001  # what Ray itself asks of it

_LEAST = 0.0001  # what Ray can count
_MOST = 2**53  # far above any cluster, and exact as a float
_SPAN = 1000  # numbers of ranks that a trial may be given: each is an alternative

_NOTHING = 0.002  # CPUs of a rank that asks for none: Ray knows no empty bundle, and some bound is needed


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources of one trial: ``ranks`` processes, each with what the other fields say.

    Args:
        ranks: processes of one trial, at least 1; or ``(fewest, most)``: an attempt starts with as
            many as are free, and a retry goes on from the same checkpoint with as many as are then.
        cpus: CPU cores per rank; may be a fraction.
        gpus: GPUs per rank; ``None`` means one per rank if the cluster has GPUs, else none;
            0 hides them from the ranks. A fraction shares a device with other trials, and is for
            trials of one rank: NCCL needs a device for each rank.
        memory: bytes per rank: Ray reserves them when it schedules, and a rank whose processes
            hold more is ended with reason ``oom``. ``None`` reserves nothing; the rank that holds
            the most is then ended when its node is about to run out.
        custom: Ray custom resources per rank, such as ``{"fast_disk": 1}``.
        accelerator: type of the GPUs, as Ray names it, such as ``"A100"``; None: any.

    Raises:
        BadInput: a number is out of range.

    Example:
        >>> Resources(ranks=2, cpus=4, gpus=1).ranks
        2
    """

    ranks: int | tuple[int, int] = 1
    cpus: float = 1
    gpus: float | None = None
    memory: int | None = None
    custom: Mapping[str, float] = field(default_factory=dict)
    accelerator: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.ranks, list | tuple):
            object.__setattr__(self, "ranks", _span(self.ranks))
        elif not _is_count(self.ranks):
            raise BadInput(f"ranks={self.ranks!r}: a trial needs a whole number of ranks, at least 1")
        if not _is_number(self.cpus) or not self.cpus >= 0:
            raise BadInput(f"cpus={self.cpus!r}: the CPU cores of a rank must be 0 or more")
        if self.gpus is not None:
            self._check_gpus(self.gpus)
        if self.memory is not None and (not _is_number(self.memory) or self.memory < 1):
            raise BadInput(f"memory={self.memory!r}: the bytes of a rank must be 1 or more, or None")
        for name, amount in (("cpus", self.cpus), ("gpus", self.gpus or 0)):
            if 0 < amount < _LEAST:
                raise BadInput(f"{name}={amount!r}: Ray counts no less than {_LEAST:g}; give more, or 0")
        if not isinstance(self.custom, Mapping):
            raise BadInput(f"custom={self.custom!r}: give a dict of Ray resources and their amounts")
        for name, amount in self.custom.items():
            if not isinstance(name, str) or not name:
                raise BadInput(f"custom={{{name!r}: ...}}: the name of a Ray resource is text")
            if not _is_number(amount) or not amount > 0:
                raise BadInput(f"custom={{{name!r}: {amount!r}}}: an amount must be above 0")
            if amount < _LEAST:
                raise BadInput(f"custom={{{name!r}: {amount!r}}}: Ray counts no less than {_LEAST:g}")
            if name in ("CPU", "GPU", "memory"):
                raise BadInput(f"custom={{{name!r}: ...}}: give it by its own argument: cpus, gpus or memory")
        if self.accelerator is not None and (not isinstance(self.accelerator, str) or not self.accelerator):
            raise BadInput(f"accelerator={self.accelerator!r}: give a type such as 'A100', or None")
        if self.accelerator and self.gpus == 0:
            raise BadInput(
                f"accelerator={self.accelerator!r} with gpus=0: ask for GPUs of that type, or for none"
            )

    def _check_gpus(self, gpus: float) -> None:
        if not _is_number(gpus) or not gpus >= 0:
            raise BadInput(f"gpus={gpus!r}: the GPUs of a rank must be 0 or more, or None")
        if gpus > 1 and gpus != int(gpus):
            raise BadInput(f"gpus={gpus!r}: above 1 a rank takes whole GPUs")
        if 0 < gpus < 1 and self.most > 1:
            raise BadInput(
                f"gpus={gpus:g} with ranks={self.ranks}: ranks of one trial cannot share a GPU (NCCL needs "
                "one for each); give whole GPUs, or ranks=1 to put several trials on one GPU"
            )

    @property
    def most(self) -> int:
        """The number of ranks, or the most of them."""
        return self.ranks[1] if isinstance(self.ranks, tuple) else self.ranks

    @property
    def count(self) -> int:
        """The number of ranks, where it is one number: of an attempt that has its place."""
        assert isinstance(self.ranks, int), "alternatives() comes first"
        return self.ranks

    def resolved(self, cluster_has_gpus: bool) -> Resources:
        """With ``gpus=None`` as the number that it means on a cluster."""
        if self.gpus is not None:
            return self
        return dataclasses.replace(self, gpus=float(cluster_has_gpus or self.accelerator is not None))

    def bundle(self) -> dict[str, float]:
        """The Ray bundle of one rank; ``gpus=None`` asks for none: see :meth:`resolved`."""
        wanted: dict[str, float] = {"CPU": self.cpus, "GPU": self.gpus or 0, **self.custom}
        if self.accelerator and self.gpus:
            wanted[TYPE + self.accelerator] = _TINY
        if self.memory is not None:
            wanted["memory"] = self.memory
        asked = {name: amount for name, amount in wanted.items() if amount}
        return asked or {"CPU": _NOTHING}


ResourcesSpec = Resources | Sequence[Resources] | Callable[[Mapping[str, Any]], Any]
"""What ``tuner.optimize`` takes: one, alternatives in order of preference, or a function of the trial's
parameters that returns either."""


def alternatives(given: ResourcesSpec) -> tuple[Resources, ...]:
    """What a trial may be given, in order of preference, each with one number of ranks; empty for a function.

    Raises:
        BadInput: it is none of what ``resources`` may be.

    Example:
        >>> [one.ranks for one in alternatives(Resources(ranks=(1, 3)))]
        [3, 2, 1]
    """
    if isinstance(given, Resources):
        if isinstance(given.ranks, int):
            return (given,)
        fewest, most = given.ranks
        return tuple(dataclasses.replace(given, ranks=ranks) for ranks in range(most, fewest - 1, -1))
    if callable(given):
        return ()
    if isinstance(given, Sequence) and given and all(isinstance(one, Resources) for one in given):
        return tuple(one for each in given for one in alternatives(each))
    raise BadInput(
        f"resources={given!r}: give tuner.Resources(...), a list of them in order of preference, "
        "or a function of the trial's parameters that returns either"
    )


def chosen(given: ResourcesSpec, params: Mapping[str, Any]) -> tuple[Resources, ...]:
    """The alternatives of a trial with these parameters. What a function raises comes out as it is.

    Raises:
        BadInput: the function asked for a parameter that is not known yet, or returned something else.
    """
    if isinstance(given, Resources) or not callable(given):
        return alternatives(given)
    answer = given(_Known(params))
    if callable(answer) and not isinstance(answer, Resources):
        raise BadInput(f"resources: the function returned {answer!r}; return tuner.Resources(...)")
    return alternatives(answer)


class _Known(dict[str, Any]):
    """Parameters of a trial that has not started; of one that is missing it says why."""

    def __missing__(self, name: str) -> Any:
        raise BadInput(
            f"resources: the function asked for parameter {name!r}, and before the trial starts only "
            f"{', '.join(sorted(self)) or 'none'} is known; name the parameters with space=..."
        )


def described(one: Resources) -> str:
    """One alternative in a few words.

    Example:
        >>> described(Resources(ranks=2, cpus=4, gpus=1))
        '2 ranks, each 4 CPUs, 1 GPU'
    """
    few = f"{one.ranks[0]} to {one.ranks[1]}" if isinstance(one.ranks, tuple) else f"{one.ranks}"
    parts = [f"{one.cpus:g} CPU{'s' * (one.cpus != 1)}"]
    if one.gpus is None:
        parts.append("one GPU if there is one")
    elif one.gpus:
        parts.append(
            f"{one.gpus:g} GPU{'s' * (one.gpus > 1)}{f' {one.accelerator}' if one.accelerator else ''}"
        )
    if one.memory is not None:
        parts.append(f"{one.memory / 2**30:.3g} GiB")
    parts += [f"{amount:g} {name}" for name, amount in one.custom.items()]
    each = ", ".join(parts)
    return each if one.most == 1 else f"{few} ranks, each {each}"


def to_plain(given: ResourcesSpec) -> Any:
    """As plain data: a dict, a list of dicts, or :data:`FUNCTION`."""
    if isinstance(given, Resources):
        return {**dataclasses.asdict(given)}
    return FUNCTION if callable(given) else [to_plain(one) for one in given]


def from_plain(stored: Any) -> ResourcesSpec:
    """What :func:`to_plain` gave.

    Raises:
        BadInput: it was a function.
    """
    if stored == FUNCTION:
        raise BadInput("resources was a function, which is not stored; pass resources=...")
    if isinstance(stored, Mapping):
        return Resources(**stored)
    if isinstance(stored, Sequence) and not isinstance(stored, str):
        return tuple(one if isinstance(one, Resources) else Resources(**one) for one in stored)
    spec: ResourcesSpec = stored
    return spec


def _span(given: Sequence[Any]) -> tuple[int, int]:
    if len(given) != 2 or not all(map(_is_count, given)) or given[0] > given[1]:
        raise BadInput(f"ranks={tuple(given)!r}: give a whole number, or (fewest, most), both at least 1")
    if given[1] - given[0] >= _SPAN:
        raise BadInput(f"ranks={tuple(given)!r}: each number is an alternative; give at most {_SPAN} of them")
    return given[0], given[1]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST


def _is_number(value: Any) -> bool:
    """Whether it is a number, and one that can be counted: not NaN, and no infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST
