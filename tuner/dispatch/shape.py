"""What a group is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Shape"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a group is made of: one bundle of resources for each rank.

    Attributes:
        filler: the rest of a node, held so that nothing else of ours runs there; empty for a group
            that shares its node.
        preload: modules that the zygotes import once; another group serves as well.
        packages: what its shells were sent, as :func:`tuner.dispatch.packages.told` has it.
        name: of the group on a cluster that outlives its driver, else "".
        study: its uid.
        ahead: folders of shells whose zygotes wait for them, of the first ranks.
    """

    run: str = field(compare=False)
    ranks: int
    cpus: float
    bundle: Mapping[str, float]
    hide_gpus: bool
    filler: Mapping[str, float] = field(default_factory=dict)
    preload: tuple[str, ...] = field(default=(), compare=False)
    packages: str = ""
    name: str = field(default="", compare=False)
    study: str = field(default="", compare=False)
    ahead: tuple[str, ...] = field(default=(), compare=False)
