"""Which devices live groups hold: no whole one is ever held twice. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Held", "twice"]


@dataclass(frozen=True, kw_only=True)
class Held:
    """A device that a rank holds: Ray's id of the node, the physical id, and how much of it."""

    node: str
    device: str
    part: float


def twice(held: Iterable[Held]) -> list[tuple[str, str]]:
    """Devices of which more than the whole is held, as (node, device).

    Example:
        >>> half = Held(node="a", device="0", part=0.5)
        >>> twice([half, half]), twice([half, Held(node="a", device="0", part=1)])
        ([], [('a', '0')])
    """
    parts: dict[tuple[str, str], float] = defaultdict(float)
    for one in held:
        parts[one.node, one.device] += one.part
    return [key for key, part in parts.items() if part > 1 + 1e-6]
