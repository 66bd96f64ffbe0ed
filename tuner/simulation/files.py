"""The files of simulated checkpoints, of which there are none."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["NoFiles"]


class NoFiles:
    """The double of :mod:`tuner.checkpoint` as :class:`~tuner.attempts.Attempts` uses it."""

    def verify(self, shard: object) -> bool:
        return True

    def delete(self, paths: Iterable[str]) -> None:
        """Nothing is there."""

    def is_folder(self, root: str) -> bool:
        return False

    def sweep(self, root: str, kept: Iterable[str]) -> None:
        """Nothing is there."""
