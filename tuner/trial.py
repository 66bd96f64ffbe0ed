"""The trial that an objective receives: Optuna's, and what distributed training needs beside it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution

from tuner import checkpoint
from tuner.agreement import Agreement
from tuner.assignment import Assignment, Shard
from tuner.channel import Channel, Place
from tuner.checkpoint import Checkpoint
from tuner.device import device_of
from tuner.errors import BadInput, Interrupted
from tuner.messages import Ask, Log, Message, Saved
from tuner.plain import MAX_NAME, check_name, checked
from tuner.proxy import RankStorage, RankStudy, frozen_trial, relative_draw

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

__all__ = ["Trial", "check_value"]

_MAX_STEP = 2**31 - 1


class Trial(optuna.trial.Trial):
    """One rank's view of its trial. Everything of ``optuna.trial.Trial`` works as in a script.

    With several ranks, ``suggest_*`` gives the same value on all; ``report``, ``log``,
    attributes and constraints count from rank 0 and are silent elsewhere; any subset of ranks
    may ask ``should_prune`` and ``should_stop``, and gets the same verdict for the same ordinal
    of the call.

    Attributes:
        rank, local_rank, world_size: place among the trial's processes.
        attempt: 1 for the first try.
        seed: of (study seed, number); Python, NumPy and torch were seeded with it.
        final: this is the final training of a winner (``tuner run --params @STUDY:best``), whose value
            chooses among nothing any more: an objective may train on its validation data too.
            ``getattr(trial, "final", False)`` where Optuna itself may call the objective.

    Example:
        >>> def objective(trial: tuner.Trial) -> float:
        ...     lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
        ...     for epoch in range(3):
        ...         trial.report(lr / (epoch + 1), epoch)
        ...         trial.log({"learned": epoch / 3}, epoch)
        ...         trial.save_checkpoint({"lr": lr}, epoch)
        ...         if trial.should_prune():
        ...             raise optuna.TrialPruned
        ...     return lr / 3
        >>> study = tuner.create_study("trials", storage="sqlite:///tuner.db", pruner="none")
        >>> study = tuner.optimize(study, objective, n_trials=1, executor="inline")
        >>> sorted(study.trials[0].intermediate_values)
        [0, 1, 2]
    """

    def __init__(self, assignment: Assignment, place: Place, channel: Channel, store: Store | None) -> None:
        # not super().__init__: it would read a storage, which a worker does not have
        self.rank = place.rank
        self.local_rank = place.local_rank
        self.world_size = place.world_size
        self.attempt = assignment.attempt
        self.seed = assignment.seed
        self.final = assignment.final
        self.told_to_stop = False
        self._assignment = assignment
        self._channel = channel
        self._prune = Agreement(store, "prune", place.rank)
        self._stop = Agreement(store, "stop", place.rank)
        self._asks_to_stop = False
        self._cached_frozen_trial = frozen_trial(assignment)
        self._trial_id = assignment.number
        own = RankStorage(self._cached_frozen_trial, channel, place.rank)
        self.storage = own  # type: ignore[assignment]
        self.study = RankStudy(assignment, channel, own)  # type: ignore[assignment]
        self._relative_params, self.relative_search_space = relative_draw(assignment)
        self._fixed_params = dict(assignment.fixed)

    @property
    def device(self) -> torch.device:
        """This rank's device: the GPU that Ray assigned to it, else the CPU."""
        return device_of(self._assignment.resources.gpus)

    @property
    def folder(self) -> Path:
        """A folder that every attempt of the trial finds again, made on the way: for checkpoints that
        Tuner does not know of, such as an external program's. It goes when the trial has ended for good.

        Raises:
            BadInput: the study's checkpoints are not in a folder of this node.
            CheckpointNotSaved: the file system refused.
        """
        root = self._root()
        if "://" in root.removeprefix("file://"):
            raise BadInput(f"trial.folder is a folder, but checkpoints={root!r}; give checkpoints=FOLDER")
        path = Path(root.removeprefix("file://")) / "kept"
        with checkpoint.saving(str(path)):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def report(self, value: float, step: int) -> None:
        """Report an intermediate value; it costs the loop microseconds, and is durable soon after.

        Raises:
            Interrupted: the trial was asked to stop, and the objective never asks ``should_stop``.
            BadInput: the step is not within 0 to 2^31 - 1.
        """
        self._interrupt_if_asked()
        super().report(value, _checked_step(step))

    def should_prune(self) -> bool:
        """Whether the pruner wants this trial to end; exact for every report made before.

        Raises:
            Interrupted: see :meth:`report`.
        """
        if len(self.study.directions) > 1:
            raise NotImplementedError("Trial.should_prune is not supported for multi-objective optimization.")
        self._interrupt_if_asked()
        return self._assignment.can_prune and self._prune.verdict(self._ask_driver)

    def should_stop(self) -> bool:
        """True once the trial is asked to stop: save a checkpoint and return. Same on all ranks."""
        self._asks_to_stop = True
        if not self.told_to_stop:
            self.told_to_stop = self._stop.verdict(lambda ordinal: self._channel.stop_requested())
        return self.told_to_stop

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set a user attribute of plain data, at most 1 MiB as JSON.

        Raises:
            TypeError: not plain data; names the key.
            BadInput: too large, or a NUL in it; names the key.
        """
        super().set_user_attr(key, checked("user attribute", key, value))

    def set_constraint(self, key: str, value: float) -> None:
        """Set a constraint, as in Optuna: at most 0 is feasible; the first value of a key stays.

        Raises:
            BadInput: the name is too long, or has a NUL in it.
        """
        check_name(key, MAX_NAME - len("constraints:"))
        super().set_constraint(key, value)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Store further metrics of a step, such as ``{"train/loss": 0.3}``.

        Raises:
            BadInput: a value is no number, or the step is out of range.
        """
        number = _checked_step(step)
        plain = {}
        for name, value in metrics.items():
            check_name(name)
            try:
                plain[name] = float(value)
            except (TypeError, ValueError):
                raise BadInput(f"log: {name!r} is {type(value).__name__}, not a number") from None
        if self.rank == 0 and plain:
            self._channel.send(Log(step=number, metrics=plain))

    def tell(self, message: Message) -> None:
        """Hand a message of ours to the driver, from any rank; an objective has :meth:`log` for its own."""
        self._channel.send(message)

    def save_checkpoint(self, state: Mapping[str, Any], step: int, compress: str | None = None) -> None:
        """Save this rank's state; all ranks call it. Durable and recorded when it returns.

        Args:
            state: tensors, NumPy arrays and plain values, nested in dicts and lists.
            step: of the training, as in :meth:`report`; a retry goes on after it.
            compress: "zstd" makes what is sparse or repeats itself many times smaller; weights and
                moments in float32 stay as they are, so that it is off.

        Raises:
            BadCheckpoint: names the key of what cannot be saved.
            CheckpointNotSaved: the file system refused; the checkpoints before it stay valid.
            Interrupted: see :meth:`report`; the state was saved.
        """
        number = _checked_step(step)
        shard = checkpoint.save(self._root(), self.attempt, number, self.rank, state, compress)
        self._record(number, shard)

    @contextlib.contextmanager
    def checkpoint_dir(self, step: int) -> Iterator[Path]:
        """A folder to fill in a format of your own; it becomes a checkpoint when the block ends well.

        :meth:`load_checkpoint` then gives its path as ``state``.
        """
        root = self._root()
        if "://" in root:
            raise BadInput(f"checkpoint_dir needs a folder, but checkpoints={root!r}; use save_checkpoint")
        number = _checked_step(step)
        final = str(self._folder_of(number))
        folder = Path(final).parent
        with checkpoint.saving(final):
            checkpoint.make_folders(str(folder))
            made = tempfile.mkdtemp(dir=folder, prefix=f".rank-{self.rank}-")
        try:
            inner = Path(made) / "state"
            inner.mkdir()
            yield inner  # what is raised there is the objective's own
            with checkpoint.saving(final):
                checkpoint.finish_folder(str(inner), final)
                shard = checkpoint.folder_shard(final, self.rank)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        self._record(number, shard)

    def load_checkpoint(self) -> Checkpoint | None:
        """The newest valid checkpoint of an earlier attempt, this rank's part; None on a first try."""
        resume = self._assignment.resume
        if resume is None:
            return None
        shard = resume.shards[self.rank % len(resume.shards)]
        return Checkpoint(step=resume.step, state=checkpoint.load(shard), parts=resume.shards)

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        check_name(name)
        if self._assignment.strict and name in self._fixed_params:
            check_value(name, self._fixed_params[name], distribution)
        if self._has(name, distribution):
            return self._cached_frozen_trial.params[name]  # as Optuna's, which copies the trial to look
        return super()._suggest(name, distribution)

    def _check_distribution(self, name: str, distribution: BaseDistribution) -> None:
        if not self._has(name, distribution):
            super()._check_distribution(name, distribution)

    def _has(self, name: str, distribution: BaseDistribution) -> bool:
        """Whether it has a parameter of this very distribution."""
        known = self._cached_frozen_trial.distributions.get(name)
        return type(known) is type(distribution) and vars(known) == vars(distribution)

    def _folder_of(self, step: int) -> Path:
        """Where the folder of a step lies once it is whole."""
        return Path(f"{self._root()}/a{self.attempt}/step-{step}/rank-{self.rank}{checkpoint.FOLDER}")

    def _root(self) -> str:
        if not self._assignment.checkpoints:
            raise BadInput("this trial has no folder for checkpoints; pass checkpoints=... to tuner.optimize")
        return self._assignment.checkpoints

    def _record(self, step: int, shard: Shard) -> None:
        part = {"path": shard.path, "digest": shard.digest, "size": shard.size}
        self._channel.ask(Saved, step=step, **part, world_size=self.world_size)
        self._interrupt_if_asked()  # only now: what was made is kept

    def _ask_driver(self, ordinal: int) -> bool:
        if not self._cached_frozen_trial.intermediate_values:
            return False  # as in Optuna; published all the same, since other ranks cannot know
        return bool(self._channel.ask(Ask, ordinal=ordinal))

    def _interrupt_if_asked(self) -> None:
        """Code that never asks ``should_stop`` is stopped at its next word to us."""
        if self.rank == 0 and not self._asks_to_stop and self._channel.stop_requested():
            raise Interrupted("the trial was asked to stop")


def check_value(name: str, value: Any, distribution: BaseDistribution) -> None:
    """Refuse a parameter that its distribution does not hold.

    Raises:
        BadInput: names both.
    """
    try:
        fits = distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        fits = False
    if not fits:
        raise BadInput(f"{name}={value!r} is not in {distribution}; give a value that the objective allows")


def _checked_step(step: int) -> int:
    try:
        number = int(step)
    except (TypeError, ValueError):
        raise TypeError(f"step={step!r} is a {type(step).__name__}; give a whole number") from None
    if not 0 <= number <= _MAX_STEP:
        raise BadInput(f"step={number}: give a whole number from 0 to {_MAX_STEP}")
    return number
