"""What goes wrong in a simulated cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuner.errors import BadInput

__all__ = ["Faults"]


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong in a simulated cluster.

    Args:
        mean_life: seconds that a worker lives on average while it trains; None: for ever.
        repair: seconds until another worker is there for one that was lost.
        stragglers: share of the attempts that are slow, 0 to 1.
        slowdown: by how much.
        start_delay: seconds from a dispatch to the first step: processes, imports, data.
        checkpoint_every: steps between checkpoints, from which a lost attempt goes on; 0: it starts over.

    Raises:
        BadInput: a value is out of range.

    Example:
        >>> Faults(mean_life=3600.0, checkpoint_every=1).repair
        0.0
    """

    mean_life: float | None = None
    repair: float = 0.0
    stragglers: float = 0.0
    slowdown: float = 3.0
    start_delay: float = 0.0
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        least = {"repair": 0, "start_delay": 0, "slowdown": 1, "checkpoint_every": 0, "stragglers": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if not low <= value < math.inf:
                raise BadInput(f"faults: {name}={value!r}: give a number of at least {low}")
        if self.stragglers > 1:
            raise BadInput(f"faults: stragglers={self.stragglers!r}: give a share of 0 to 1")
        if self.mean_life is not None and not self.mean_life > 0:
            raise BadInput(f"faults: mean_life={self.mean_life!r}: give seconds, or None")
