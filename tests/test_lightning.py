"""PyTorch Lightning in a trial: epochs are reported, pruned, saved and gone on from, on one rank or two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import tuner
from tests.ranks import RankTrial, same

pl = pytest.importorskip("pytorch_lightning")

# Lightning's advice on workers, logging intervals and the like, and what it has from its own libraries.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def points() -> DataLoader[Any]:
    x = torch.arange(16.0)[:, None] / 16
    return DataLoader(TensorDataset(x, 3 * x + 1), batch_size=4)


class Line(pl.LightningModule):  # type: ignore[name-defined,misc]
    def __init__(self, break_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(1, 1)
        self.break_at = break_at
        self.epochs: list[int] = []

    def training_step(self, batch: Any, index: int) -> Any:
        return ((self.layer(batch[0]) - batch[1]) ** 2).mean()

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val/loss", ((self.layer(batch[0]) - batch[1]) ** 2).mean(), sync_dist=True)

    def on_train_epoch_start(self) -> None:
        self.epochs.append(self.current_epoch)
        if self.current_epoch == self.break_at:
            raise KeyboardInterrupt

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Fit:
    """One training on one rank: its trial, its model, and what came out of ``fit``."""

    def __init__(
        self,
        folder: Path,
        *,
        monitor: str = "val/loss",
        break_at: int | None = None,
        checkpoint_every: int = 1,
        trial: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.trial: Any = RankTrial({}, folder, **(trial or {}))
        self.model = Line(break_at)
        self.callback = tuner.lightning.TunerCallback(
            self.trial, monitor=monitor, checkpoint_every=checkpoint_every
        )
        self.trainer = pl.Trainer(
            max_epochs=4, logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder, callbacks=[self.callback],
            **tuner.lightning.trainer_options(self.trial), **options,
        )  # fmt: skip
        self.path = self.callback.ckpt_path()
        self.error: BaseException | None = None
        try:
            self.trainer.fit(self.model, points(), points(), ckpt_path=self.path)
        except BaseException as error:
            self.error = error


def test_each_epoch_is_reported_and_saved_and_the_sanity_check_is_not(tmp_path: Path) -> None:
    fit = Fit(tmp_path)
    assert fit.error is None
    assert list(fit.trial.reports) == list(fit.trial.saved) == [0, 1, 2, 3]
    assert fit.trial.reports[3] == fit.trainer.callback_metrics["val/loss"].item() < fit.trial.reports[0]
    assert fit.path is None
    assert not list(tmp_path.rglob("*.ckpt"))  # no ModelCheckpoint beside ours


def test_an_epoch_without_validation_is_not_reported(tmp_path: Path) -> None:
    fit = Fit(tmp_path, check_val_every_n_epoch=2, checkpoint_every=3)
    assert fit.error is None
    assert list(fit.trial.reports) == [1, 3]
    assert list(fit.trial.saved) == [2]


def test_of_several_validations_in_an_epoch_the_last_counts(tmp_path: Path) -> None:
    fit = Fit(tmp_path, val_check_interval=2)
    assert fit.trial.reports == Fit(tmp_path).trial.reports


def test_a_pruned_training_ends_with_trial_pruned(tmp_path: Path) -> None:
    fit = Fit(tmp_path, trial={"prune_at": 1})
    assert isinstance(fit.error, optuna.TrialPruned)
    assert list(fit.trial.reports) == [0, 1]


def test_a_stopped_training_saves_and_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole = Fit(tmp_path / "whole")
    first = Fit(tmp_path / "parts", checkpoint_every=0, trial={"stop_at": 0})
    # should_stop is asked before the report, so it sees epoch 0 in epoch 1
    assert isinstance(first.error, tuner.Interrupted)
    assert list(first.trial.saved) == [1]
    second = Fit(tmp_path / "parts", trial={"start": first.trial.last()})
    assert second.error is None
    assert second.model.epochs == [2, 3]
    assert {**first.trial.reports, **second.trial.reports} == whole.trial.reports
    assert same(dict(second.model.state_dict()), dict(whole.model.state_dict()))
    assert second.path is not None
    assert not Path(second.path).parent.exists()


def test_a_checkpoint_of_the_objectives_own_is_not_taken_for_lightnings(tmp_path: Path) -> None:
    other: Any = RankTrial({}, tmp_path)
    other.save_checkpoint({"model": 1}, 0)
    trial: Any = RankTrial({}, tmp_path, start=other.last())
    with pytest.raises(tuner.BadInput, match="not of TunerCallback"):
        tuner.lightning.TunerCallback(trial, "val/loss").ckpt_path()


def test_an_attempt_that_goes_on_after_the_last_epoch_has_its_value(tmp_path: Path) -> None:
    first = Fit(tmp_path)
    second = Fit(tmp_path, trial={"start": first.trial.last()})
    assert second.error is None
    assert second.model.epochs == []
    assert second.callback.value == first.callback.value == first.trial.reports[3]


def test_ctrl_c_stays_ctrl_c(tmp_path: Path) -> None:
    import signal

    before = signal.getsignal(signal.SIGINT)
    fit = Fit(tmp_path, break_at=1)
    assert isinstance(fit.error, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_metric_that_was_not_logged_is_named(tmp_path: Path) -> None:
    fit = Fit(tmp_path, monitor="val/accuracy")
    assert isinstance(fit.error, tuner.BadInput)
    assert "'val/accuracy' was not logged; logged are: val/loss" in str(fit.error)


def test_a_trainer_of_the_other_library_is_refused(tmp_path: Path) -> None:
    callback = tuner.lightning.TunerCallback(RankTrial({}, tmp_path), "loss")  # type: ignore[arg-type]
    with pytest.raises(tuner.BadInput, match="import only one of"):
        callback.setup(object(), None, "fit")  # type: ignore[arg-type]
    with pytest.raises(tuner.BadInput, match="checkpoint_every=-1"):
        tuner.lightning.TunerCallback(RankTrial({}, tmp_path), "loss", checkpoint_every=-1)  # type: ignore[arg-type]


def test_the_ranks_of_a_trial_are_lightnings_cluster(tmp_path: Path) -> None:
    """Four ranks on two nodes: one rank a node prepares data, and rank 0's node is node 0."""
    places = []
    for rank in range(4):
        trial: Any = RankTrial({}, tmp_path, rank=rank, world_size=4)
        trial.local_rank = rank % 2
        environment = tuner.lightning.TunerEnvironment(trial)
        environment.set_global_rank(7)
        environment.set_world_size(7)
        assert environment.world_size() == 4
        assert environment.creates_processes_externally
        places.append((environment.global_rank(), environment.local_rank(), environment.node_rank()))
    assert places == [(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1)]


# ------------------------------------------------------------------- two ranks, on Ray

OBJECTIVE = """
import os, signal, warnings

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

import tuner

warnings.filterwarnings("ignore")


class Line(pl.LightningModule):
    def __init__(self, trial):
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(1, 1)
        self.trial, self.rows = trial, 0

    def training_step(self, batch, index):
        self.rows += len(batch[0])
        return ((self.layer(batch[0]) - batch[1]) ** 2).mean()

    def validation_step(self, batch, index):
        self.log("val/loss", ((self.layer(batch[0]) - batch[1]) ** 2).mean(), sync_dist=True)

    def on_train_epoch_start(self):
        self.rows = 0
        trial = self.trial
        if trial.params["kind"] == "killed" and trial.attempt == 1 and self.current_epoch == 2 and trial.rank:
            os.kill(os.getpid(), signal.SIGKILL)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def objective(trial):
    kind = trial.suggest_categorical("kind", ["plain", "killed", "late", "pruned"])
    x = torch.arange(16.0)[:, None] / 16
    points = DataLoader(TensorDataset(x, 3 * x + 1 if kind != "pruned" else 3 * x + 100), batch_size=4)
    callback = tuner.lightning.TunerCallback(trial, "val/loss")
    trainer = pl.Trainer(
        max_epochs=4, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback], **tuner.lightning.trainer_options(trial),
    )
    model = Line(trial)
    path = callback.ckpt_path()
    trainer.fit(model, points, points, ckpt_path=path)
    trial.set_user_attr("place", [trainer.world_size, trainer.global_rank, model.rows, path is not None])
    if kind == "late" and trial.attempt == 1 and trial.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return callback.value
"""

DRIVER = """
import json, sys

import tuner

if __name__ == "__main__":
    study = tuner.create_study(
        "s", storage=sys.argv[1], seed=1, sampler="random", pruner="threshold(upper=100)")
    for kind in ("plain", "killed", "late", "pruned"):
        study.enqueue_trial({"kind": kind})
    tuner.optimize(
        study, "trains.py", n_trials=4, resources=tuner.Resources(ranks=2, cpus=0.5, gpus=0),
        retry=tuner.Retry(backoff=0.1), max_concurrent=1, progress=False)
    print(json.dumps([[one.state.name, one.value, one.intermediate_values, one.user_attrs]
                      for one in study.trials]))
"""


@pytest.mark.timeout(600)
def test_two_ranks_report_prune_and_go_on_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "trains.py").write_text(OBJECTIVE)
    (tmp_path / "drive.py").write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, "drive.py", f"sqlite:///{tmp_path}/tuner.db"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    plain, killed, late, pruned = json.loads(done.stdout.splitlines()[-1])
    assert plain[0] == killed[0] == "COMPLETE"
    assert plain[3]["place"] == [2, 0, 8, False]  # half of the 16 rows: the sampler is distributed
    assert killed[3]["place"] == [2, 0, 8, True]
    assert list(plain[2]) == ["0", "1", "2", "3"]
    assert plain[1] == plain[2]["3"] < plain[2]["0"]
    assert killed[1:3] == plain[1:3]  # the same training, to the last bit
    assert late[:3] == plain[:3]  # killed when all was trained: it has nothing left to train
    assert late[3]["place"] == [2, 0, 0, True]
    assert pruned[0] == "PRUNED"
    assert list(pruned[2]) == ["0"]
