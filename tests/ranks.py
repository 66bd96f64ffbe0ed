"""The ranks of a trial without a driver: a double of the trial, and processes that share a group."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FixedTrial

from tuner import checkpoint
from tuner.assignment import Shard


class RankTrial(FixedTrial):
    """One rank's trial with given parameters, and checkpoints in a folder.

    Args:
        stop_at: the step after whose report ``should_stop`` says True; ``prune_at`` likewise.
        start: the checkpoint to go on from: its step, and this rank's part or the parts of all ranks.
    """

    def __init__(
        self,
        params: dict[str, Any],
        folder: Path,
        *,
        rank: int = 0,
        world_size: int = 1,
        stop_at: int | None = None,
        prune_at: int | None = None,
        start: tuple[int, Shard | tuple[Shard, ...]] | None = None,
        seed: int = 7,
        final: bool = False,
    ) -> None:
        super().__init__(params)
        self.final = final
        self.rank = self.local_rank = rank
        self.world_size = world_size
        self.device = torch.device("cpu")
        self.attempt = 1 if start is None else 2
        self.seed = seed
        self.reports: dict[int, float] = {}
        self.metrics: dict[int, dict[str, float]] = {}
        self.saved: dict[int, Shard] = {}
        self._folder = folder
        self._stop_at, self._prune_at = stop_at, prune_at
        self._start = start
        torch.manual_seed(seed)

    def report(self, value: float, step: int) -> None:
        self.reports[step] = value

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.metrics[step] = dict(metrics)

    def should_prune(self) -> bool:
        return self._prune_at in self.reports

    def should_stop(self) -> bool:
        return self._stop_at in self.reports

    def save_checkpoint(self, state: dict[str, Any], step: int) -> None:
        self.saved[step] = checkpoint.save(str(self._folder), self.attempt, step, self.rank, state)

    def load_checkpoint(self) -> checkpoint.Checkpoint | None:
        if self._start is None:
            return None
        step, found = self._start
        parts = (found,) if isinstance(found, Shard) else found
        own = parts[self.rank % len(parts)]
        return checkpoint.Checkpoint(step=step, state=checkpoint.load(own), parts=parts)

    @contextlib.contextmanager
    def checkpoint_dir(self, step: int) -> Iterator[Path]:
        final = self._folder / f"a{self.attempt}" / f"step-{step}" / f"rank-{self.rank}.dir"
        made = final.with_suffix(".made")
        made.mkdir(parents=True)
        yield made
        checkpoint.finish_folder(str(made), str(final))
        self.saved[step] = checkpoint.folder_shard(str(final), self.rank)

    def last(self) -> tuple[int, Shard]:
        """The newest checkpoint that was saved."""
        step = max(self.saved)
        return step, self.saved[step]

    def last_state(self) -> Any:
        """Its state."""
        return checkpoint.load(self.last()[1])


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, through all containers."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def run_script(script: Path, *arguments: str) -> None:
    """Run a program in a fresh interpreter that finds this folder and the project."""
    root = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root.parent}", "GLOO_SOCKET_IFNAME": "lo"}
    ended = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
