"""What one trial needs of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tuner.errors import BadInput

__all__ = ["Resources"]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources of one trial: ``ranks`` processes, each with what the other fields say.

    Args:
        ranks: processes of one trial, at least 1.
        cpus: CPU cores per rank; may be a fraction.
        gpus: GPUs per rank; ``None`` means one per rank if the cluster has GPUs, else none;
            0 hides them from the ranks.
        memory: bytes per rank: Ray reserves them when it schedules, and a rank whose processes
            hold more is ended with reason ``oom``. ``None`` reserves nothing; the rank that holds
            the most is then ended when its node is about to run out.
        custom: Ray custom resources per rank, such as ``{"fast_disk": 1}``.

    Raises:
        BadInput: a number is out of range.

    Example:
        >>> Resources(ranks=2, cpus=4, gpus=1).ranks
        2
    """

    ranks: int = 1
    cpus: float = 1
    gpus: float | None = None
    memory: int | None = None
    custom: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.ranks, bool) or not isinstance(self.ranks, int) or self.ranks < 1:
            raise BadInput(f"ranks={self.ranks!r}: a trial needs a whole number of ranks, at least 1")
        if not self.cpus >= 0:
            raise BadInput(f"cpus={self.cpus!r}: the CPU cores of a rank must be 0 or more")
        if self.gpus is not None and not self.gpus >= 0:
            raise BadInput(f"gpus={self.gpus!r}: the GPUs of a rank must be 0 or more, or None")
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise BadInput(f"gpus={self.gpus!r}: above 1 a rank takes whole GPUs")
        if self.memory is not None and self.memory < 1:
            raise BadInput(f"memory={self.memory!r}: the bytes of a rank must be 1 or more, or None")
        for name, amount in self.custom.items():
            if not amount > 0:
                raise BadInput(f"custom={{{name!r}: {amount!r}}}: an amount must be above 0")

    def bundle(self, gpus: float) -> dict[str, float]:
        """The Ray bundle of one rank, with ``gpus`` already resolved from ``None``."""
        wanted: dict[str, float] = {"CPU": self.cpus, "GPU": gpus, **self.custom}
        if self.memory is not None:
            wanted["memory"] = self.memory
        return {name: amount for name, amount in wanted.items() if amount}
