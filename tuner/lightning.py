"""PyTorch Lightning inside a trial: its ``Trainer`` on the trial's ranks, and a callback that reports.

The ranks are processes of ours, and their group is there before the objective is called: Lightning must
start none. :func:`trainer_options` says so to its ``Trainer``, and :class:`TunerCallback` reports, prunes,
saves and resumes::

    def objective(trial):
        model = Classifier(lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True))
        callback = tuner.lightning.TunerCallback(trial, monitor="val/accuracy")
        trainer = Trainer(max_epochs=10, callbacks=[callback], **tuner.lightning.trainer_options(trial))
        trainer.fit(model, data, ckpt_path=callback.ckpt_path())
        return callback.value

Both ``pytorch_lightning`` and ``lightning.pytorch`` will do: the one that was imported before this
module, else the one that is installed.
"""

from __future__ import annotations

import importlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import torch
from torch import distributed as dist

from tuner.errors import BadInput, Interrupted

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from pytorch_lightning.strategies import DDPStrategy

    from tuner.trial import Trial

__all__ = ["TunerCallback", "TunerEnvironment", "TunerStrategy", "trainer_options"]

LIBRARIES = ("pytorch_lightning", "lightning.pytorch")


def _library() -> str:
    for name in sorted(LIBRARIES, key=lambda name: name not in sys.modules):
        try:
            importlib.import_module(name)
            return name
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
    raise BadInput("tuner.lightning needs PyTorch Lightning: pip install pytorch-lightning")


if not TYPE_CHECKING:
    _name = _library()
    pl = importlib.import_module(_name)
    ClusterEnvironment = importlib.import_module(f"{_name}.plugins.environments").ClusterEnvironment
    DDPStrategy = importlib.import_module(f"{_name}.strategies").DDPStrategy


class TunerEnvironment(ClusterEnvironment):
    """The ranks of a trial as Lightning's cluster: they are there, and their places are fixed.

    Args:
        trial: gives rank, local rank and world size.

    Example:
        >>> from types import SimpleNamespace as Place
        >>> trial = Place(rank=0, local_rank=0, world_size=2, device=torch.device("cpu"))
        >>> environment = tuner.lightning.TunerEnvironment(trial)
        >>> environment.world_size(), environment.creates_processes_externally
        (2, True)
    """

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self._trial = trial

    @property
    def creates_processes_externally(self) -> bool:
        """True: Lightning starts no process."""
        return True

    @property
    def main_address(self) -> str:
        """Not asked for: the process group is there."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Not asked for: the process group is there."""
        return 0

    @staticmethod
    def detect() -> bool:
        """False: only a trial knows its ranks."""
        return False

    def world_size(self) -> int:
        """Ranks of the trial."""
        return self._trial.world_size

    def set_world_size(self, size: int) -> None:
        """Nothing: the trial's stays."""

    def global_rank(self) -> int:
        """The trial's rank."""
        return self._trial.rank

    def set_global_rank(self, rank: int) -> None:
        """Nothing: the trial's stays."""

    def local_rank(self) -> int:
        """The index among the ranks of this node, of which 0 prepares the data."""
        return self._trial.local_rank

    def node_rank(self) -> int:
        """0 where rank 0 may be: Lightning uses it for shared data only."""
        return 0 if self._trial.rank == self._trial.local_rank else 1


class TunerStrategy(DDPStrategy):
    """DDP on one device per rank, which is all that a rank sees: ``cuda:0``, or the CPU.

    Args:
        trial: gives the device and the world size.
        options: of Lightning's ``DDPStrategy``.

    Example:
        >>> from types import SimpleNamespace as Place
        >>> trial = Place(rank=0, local_rank=0, world_size=2, device=torch.device("cpu"))
        >>> tuner.lightning.TunerStrategy(trial, find_unused_parameters=True).root_device
        device(type='cpu')
    """

    def __init__(self, trial: Trial, **options: Any) -> None:
        super().__init__(cluster_environment=TunerEnvironment(trial), **options)
        self._trial = trial

    @property
    def root_device(self) -> torch.device:
        """The trial's, not the one with the index of the local rank."""
        return self._trial.device

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """The trial's ranks, not the devices that this process sees."""
        return {"num_replicas": self._trial.world_size, "rank": self._trial.rank}


def trainer_options(trial: Trial, **options: Any) -> dict[str, Any]:
    """What ``Trainer`` needs to train on the ranks of the trial.

    Args:
        options: of Lightning's ``DDPStrategy``, such as ``find_unused_parameters=True``.

    In an objective::

        trainer = Trainer(max_epochs=10, **tuner.lightning.trainer_options(trial))

    Example:
        >>> from types import SimpleNamespace as Place
        >>> trial = Place(rank=0, local_rank=0, world_size=2, device=torch.device("cpu"))
        >>> options = tuner.lightning.trainer_options(trial)
        >>> options["devices"], type(options["strategy"]).__name__
        (1, 'TunerStrategy')
    """
    plain = {"accelerator": "gpu" if trial.device.type == "cuda" else "cpu", "devices": 1, "num_nodes": 1}
    if trial.world_size == 1:
        return {**plain, "plugins": [TunerEnvironment(trial)]}
    return {**plain, "strategy": TunerStrategy(trial, **options)}


class TunerCallback(pl.callbacks.Checkpoint):
    """Reports a metric at the end of each epoch, prunes, saves checkpoints, and stops when asked to.

    All ranks use it. Verdicts are the same on all; what rank 0 logged is reported, so log the metric with
    ``sync_dist=True``. The step is the epoch, from 0; of several validations in an epoch the last counts,
    an epoch without validation is not reported, and neither is Lightning's sanity check. A trial that is
    asked to stop saves at the end of the epoch, and goes on from there in its next attempt.

    As a ``Checkpoint`` of Lightning's it runs after the other callbacks, whose state it saves, and
    ``Trainer`` adds no ``ModelCheckpoint`` of its own; ``Trainer(enable_checkpointing=False)`` refuses it.

    Args:
        trial: what the objective was given.
        monitor: name of the metric, as in ``self.log("val/accuracy", ...)``.
        checkpoint_every: epochs between checkpoints; 0: only when asked to stop, and at no other time.

    Attributes:
        value: what was last reported; None before. Return it: an attempt that goes on after the last epoch
            trains nothing, and Lightning's ``callback_metrics`` are empty there.

    Raises:
        optuna.TrialPruned, tuner.Interrupted: out of ``Trainer.fit``; let them pass.
        BadInput: the metric was not logged.

    Example:
        >>> from types import SimpleNamespace as Place
        >>> trial = Place(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
        >>> callback = tuner.lightning.TunerCallback(trial, monitor="val/accuracy", checkpoint_every=5)
        >>> trainer = pl.Trainer(max_epochs=10, logger=False, callbacks=[callback],
        ...                      **tuner.lightning.trainer_options(trial))
        >>> trainer.num_devices
        1
    """

    def __init__(self, trial: Trial, monitor: str, *, checkpoint_every: int = 1) -> None:
        super().__init__()
        if checkpoint_every < 0:
            raise BadInput(f"checkpoint_every={checkpoint_every}: give a number of epochs, or 0")
        self.value: float | None = None
        self._trial = trial
        self._monitor = monitor
        self._every = checkpoint_every
        self._validated: int | None = None
        self._folder = ""
        self._on_sigint: Any = None

    def ckpt_path(self) -> str | None:
        """For ``Trainer.fit``: a file of the newest checkpoint of an earlier attempt; None on a first try.

        All ranks call it: they get rank 0's, which is whole. The file goes with the end of the training.
        """
        saved = self._trial.load_checkpoint()
        if saved is None:
            return None
        held: list[Any] = [self._checked(saved.state) if self._trial.rank == 0 else None]
        if self._trial.world_size > 1:
            dist.broadcast_object_list(held, device=self._trial.device)
        self.value = held[0]["value"]
        self._folder = tempfile.mkdtemp(prefix="tuner-lightning-")
        path = Path(self._folder) / "resume.ckpt"
        path.write_bytes(held[0]["lightning"])
        return str(path)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that the trainer is of the library that this module has taken."""
        self._on_sigint = signal.getsignal(signal.SIGINT)
        if not isinstance(trainer, pl.Trainer):
            raise BadInput(
                f"the Trainer is of {type(trainer).__module__.partition('.')[0]}, but tuner.lightning works "
                f"with {pl.__name__} here; import only one of {' and '.join(LIBRARIES)}"
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that this epoch has a fresh value."""
        if not trainer.sanity_checking:
            self._validated = trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report; then prune, save or stop, the same on all ranks."""
        epoch = trainer.current_epoch
        stop = self._trial.should_stop()  # first: with it asked, a report raises no Interrupted
        if self._validated == epoch or not trainer.enable_validation:
            self.value = self._value(trainer)
            self._trial.report(self.value, epoch)
            if self._trial.should_prune():
                raise optuna.TrialPruned(f"pruned after epoch {epoch}")
        if stop or (self._every and (epoch + 1) % self._every == 0):
            self._save(trainer, epoch)
        if stop:
            raise Interrupted(f"the trial was asked to stop; epoch {epoch} is saved")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Let Ctrl-C through, which Lightning would turn into an exit, and ignore from then on."""
        self._clean()
        if isinstance(exception, KeyboardInterrupt):
            signal.signal(signal.SIGINT, self._on_sigint)
            raise exception

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the file that the training was resumed from."""
        self._clean()

    @staticmethod
    def _checked(state: Mapping[str, Any] | Path) -> Any:
        if isinstance(state, Path) or "lightning" not in state:
            raise BadInput("the trial's checkpoint is not of TunerCallback; use trial.load_checkpoint")
        return state

    def _value(self, trainer: pl.Trainer) -> float:
        try:
            return float(trainer.callback_metrics[self._monitor])
        except KeyError:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise BadInput(
                f"monitor={self._monitor!r} was not logged; logged are: {logged}; see LightningModule.log"
            ) from None

    def _save(self, trainer: pl.Trainer, epoch: int) -> None:
        with tempfile.TemporaryDirectory(prefix="tuner-lightning-") as folder:
            path = Path(folder) / "epoch.ckpt"
            trainer.save_checkpoint(path)  # all ranks; rank 0 writes
            state = {"lightning": path.read_bytes(), "value": self.value} if self._trial.rank == 0 else {}
        self._trial.save_checkpoint(state, epoch)

    def _clean(self) -> None:
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = ""
