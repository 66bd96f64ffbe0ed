"""Digits: an MLP on scikit-learn's handwritten digits, trained by all ranks of a trial.

What it teaches:

- **Distributed training.** The ranks share each logical batch, so the batch size is the search's and
  not the machine's: one rank or four train the same model, but for the rounding and the dropout.
- **Conditional parameters.** SGD has its momentum, Adam its ``beta1``; a trial has one of them.
- **Pruning.** The validation accuracy of each epoch is reported. :data:`EPOCHS` is 27, which gives
  successive halving by three its rungs at 1, 3, 9 and 27.
- **Resuming to the last bit.** Every random number follows from (seed, epoch, rank) and none from
  what came before, so that weights and optimiser are all that a checkpoint needs.
- **Model selection.** A trial returns the best validation accuracy of its epochs, and its checkpoint
  keeps the weights of that epoch: what :func:`evaluate_test` tests is what was selected.
- **A final training.** ``tuner run objectives/digits.py --params @digits:best`` sets ``trial.final``: the
  validation images are trained on too, the test images judge, and no epoch is selected by them.

::

    study = tuner.create_study("digits", direction="maximize", pruner="successivehalving(min_resource=1)")
    tuner.optimize(study, objective, n_trials=30, resources=tuner.Resources(ranks=2))
    evaluate_test(tuner.best_checkpoint(study).state)
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import tuner

__all__ = ["EPOCHS", "Split", "evaluate_test", "load_data", "objective"]

EPOCHS = 27
CHECKPOINT_EVERY = 3

PIXELS, CLASSES = 64, 10


def objective(trial: tuner.Trial) -> float:
    """Train with the trial's parameters and return the best validation accuracy, 0 to 1; in a final training
    the last accuracy on the test images.

    Parameters: ``lr``, ``batch_size`` (over all ranks), ``width``, ``depth``, ``dropout``,
    ``weight_decay``, ``optimizer``, and ``momentum``, ``nesterov`` (SGD) or ``beta1`` (Adam).

    Example:
        >>> study = tuner.create_study("digits-example", storage="sqlite:///tuner.db", direction="maximize",
        ...                            pruner="threshold(lower=1)")  # one epoch will do here
        >>> study.enqueue_trial({"width": 16, "depth": 1})
        >>> study = tuner.optimize(study, objective, n_trials=1, executor="inline")
        >>> study.trials[0].state.name, len(study.trials[0].intermediate_values)
        ('PRUNED', 1)
    """
    width = trial.suggest_int("width", 16, 256, log=True)
    depth = trial.suggest_int("depth", 1, 3)
    dropout = trial.suggest_float("dropout", 0.0, 0.6)
    batch_size = trial.suggest_categorical("batch_size", [32, 64, 128])

    device = trial.device
    train, validation = data_of(trial.final)
    train, validation = train.to(device), validation.to(device)
    seed_torch(trial.seed)  # the same first weights on all ranks
    model = network(width, depth, dropout).to(device)
    optimizer = make_optimizer(trial, model)

    first_epoch = 1
    best: dict[str, Any] = {"accuracy": 0.0, "epoch": 0, "weights": copy_of(model)}
    checkpoint = trial.load_checkpoint()
    if checkpoint is not None:
        state: Any = checkpoint.state
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch, best = checkpoint.step + 1, state["best"]

    trained = model if trial.world_size == 1 else DistributedDataParallel(model)
    for epoch in range(first_epoch, EPOCHS + 1):
        train_loss = train_epoch(trial, trained, optimizer, train, batch_size, epoch)
        accuracy, loss = evaluate(model, validation)  # all ranks, on the same weights: the same on all
        if accuracy > best["accuracy"] or trial.final:
            best = {"accuracy": accuracy, "epoch": epoch, "weights": copy_of(model)}

        trial.report(accuracy, epoch)
        trial.log({"train/loss": train_loss, "validation/loss": loss}, epoch)
        if epoch < EPOCHS and trial.should_prune():
            raise optuna.TrialPruned
        stop = trial.should_stop()
        if stop or epoch % CHECKPOINT_EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
            trial.save_checkpoint({**state, "width": width, "depth": depth}, epoch)
        if stop:
            break  # the trial goes on from here in its next attempt

    trial.set_user_attr("best_epoch", best["epoch"])
    return float(best["accuracy"])


def make_optimizer(trial: tuner.Trial, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or Adam, each with parameters of its own."""
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True)
    if trial.suggest_categorical("optimizer", ["sgd", "adam"]) == "sgd":
        momentum = trial.suggest_float("momentum", 0.5, 0.99)
        nesterov = trial.suggest_categorical("nesterov", [False, True])
        return torch.optim.SGD(
            model.parameters(), lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )
    beta1 = trial.suggest_float("beta1", 0.8, 0.99)
    return torch.optim.AdamW(model.parameters(), lr, betas=(beta1, 0.999), weight_decay=weight_decay)


def train_epoch(
    trial: tuner.Trial,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Split,
    batch_size: int,
    epoch: int,
) -> float:
    """One pass over the data; this rank computes its share of every batch. Returns the mean loss."""
    seed_torch(trial.seed, epoch)
    order = torch.randperm(len(data)).to(trial.device)  # the same on all ranks
    seed_torch(trial.seed, epoch, trial.rank)  # each rank drops units of its own
    model.train()
    total = torch.zeros((), device=trial.device)
    for batch in torch.split(order, batch_size):
        mine = batch[trial.rank :: trial.world_size]
        loss = cross_entropy(model(data.images[mine]), data.labels[mine], reduction="sum")
        optimizer.zero_grad()
        # DDP averages over the ranks, whose shares may differ by one row: the sum over all ranks
        # divided by the rows of the whole batch is the gradient that a single rank would have.
        (loss * (trial.world_size / len(batch))).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach()
    if trial.world_size > 1:
        dist.all_reduce(total)
    return total.item() / len(data)


@torch.no_grad()
def evaluate(model: nn.Module, data: Split) -> tuple[float, float]:
    """Accuracy, 0 to 1, and mean cross-entropy of the model on the data."""
    model.eval()
    logits = model(data.images)
    hits = logits.argmax(dim=1) == data.labels
    return hits.double().mean().item(), cross_entropy(logits, data.labels).item()


def evaluate_test(state: Mapping[str, Any] | Path) -> float:
    """Accuracy on the test images, 0 to 1, of the best weights in a checkpoint of :func:`objective`.

    Ask once, for the winner: a test set that chooses among trials is a second validation set.

    Args:
        state: of ``tuner.best_checkpoint(study)``.

    Example:
        >>> untrained = network(16, 1, dropout=0.0).state_dict()
        >>> 0.0 <= evaluate_test({"width": 16, "depth": 1, "best": {"weights": untrained}}) < 0.5
        True
    """
    assert isinstance(state, Mapping), "the checkpoints of this objective are mappings"
    model = network(state["width"], state["depth"], dropout=0.0)
    model.load_state_dict(state["best"]["weights"])
    return evaluate(model, load_data("test"))[0]


def network(width: int, depth: int, dropout: float) -> nn.Sequential:
    """An MLP of ``depth`` hidden layers, with logits of shape (n, 10) for images of shape (n, 64)."""
    layers: list[nn.Module] = []
    for inputs in [PIXELS] + [width] * (depth - 1):
        layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


@dataclass(frozen=True, kw_only=True)
class Split:
    """A part of the data: ``images`` (n, ...) with pixels from 0 to 1, and ``labels`` (n,).

    Example:
        >>> Split(images=torch.zeros(3, 64), labels=torch.zeros(3)).to(torch.device("cpu")).images.shape
        torch.Size([3, 64])
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """The same on a device: all of it at once, since it is small and then never waits."""
        return Split(images=self.images.to(device), labels=self.labels.to(device))


def data_of(final: bool) -> tuple[Split, Split]:
    """What a trial trains on, and what it is judged by."""
    train, validation = load_data("train"), load_data("validation")
    if not final:
        return train, validation
    images = torch.cat([train.images, validation.images])
    return Split(images=images, labels=torch.cat([train.labels, validation.labels])), load_data("test")


@functools.cache
def load_data(part: str) -> Split:
    """``"train"`` (1077 images), ``"validation"`` (360) or ``"test"`` (360).

    The split is stratified and always the same, whatever the trial's seed: trials are compared on
    the same images, and no run of any study has seen the test images.

    Example:
        >>> [len(load_data(part)) for part in ("train", "validation", "test")]
        [1077, 360, 360]
    """
    images, labels = load_digits(return_X_y=True)
    split = functools.partial(train_test_split, test_size=360, random_state=0)
    rest, test = split(range(len(labels)), stratify=labels)
    train, validation = split(rest, stratify=labels[rest])
    rows = {"train": train, "validation": validation, "test": test}[part]
    return Split(
        images=torch.tensor(images[rows] / 16.0, dtype=torch.float32), labels=torch.tensor(labels[rows])
    )


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights as they are now; ``state_dict`` alone would go on changing with the model."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def seed_torch(*parts: int) -> None:
    """Seed torch with a hash of the parts, so that seeds that are near give draws that are not."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:4], "big"))
