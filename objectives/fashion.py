"""Fashion: a convolutional network on Fashion-MNIST, in mixed precision where there is a GPU.

What it teaches:

- **Mixed precision.** On a GPU the forward pass runs in bfloat16, or in float16 with a scaled loss where
  the GPU is too old for that; weights and optimiser stay in float32, on a CPU everything does. The
  scaler's state is part of the checkpoint: without it a resumed training would skip other steps.
- **Data that need not be there.** The files come from ``$FASHION_MNIST`` or from Debian's package
  ``dataset-fashion-mnist``; without them the same network trains on scikit-learn's digits.
- **A schedule that resumes.** The learning rate follows from the epoch alone.

::

    study = tuner.create_study("fashion", direction="maximize", pruner="successivehalving(min_resource=1)")
    tuner.optimize(study, objective, n_trials=30, resources=tuner.Resources(ranks=2))
"""

from __future__ import annotations

import functools
import gzip
import math
import os
from pathlib import Path
from typing import Any

import numpy
import optuna
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import tuner
from objectives.digits import CLASSES, Split, load_data, seed_torch

__all__ = ["EPOCHS", "ROWS", "load_images", "objective"]

EPOCHS = 9
ROWS = {"train": 10_000, "validation": 2_000}
"""Images of Fashion-MNIST's training file that are used: the first ones to train, then the next."""

DEBIAN = "/usr/share/datasets/fashion-mnist"


def objective(trial: tuner.Trial) -> float:
    """Train with the trial's parameters and return the last validation accuracy, 0 to 1.

    Parameters: ``lr``, ``channels`` (8 to 64), ``dropout``, ``batch_size`` (over all ranks).

    Example:
        >>> study = tuner.create_study("fashion", storage="sqlite:///tuner.db", direction="maximize",
        ...                            pruner="threshold(lower=1)")  # one epoch will do here
        >>> study.enqueue_trial({"channels": 8, "batch_size": 256})
        >>> study = tuner.optimize(study, objective, n_trials=1, executor="inline")
        >>> study.trials[0].state.name, len(study.trials[0].intermediate_values)
        ('PRUNED', 1)
    """
    lr = trial.suggest_float("lr", 1e-3, 0.3, log=True)
    channels = trial.suggest_int("channels", 8, 64, log=True)
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    batch_size = trial.suggest_categorical("batch_size", [64, 128, 256])

    device = trial.device
    train, validation = load_images("train").to(device), load_images("validation").to(device)
    seed_torch(trial.seed)  # the same first weights on all ranks
    model = network(channels, dropout, side=train.images.shape[-1]).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True)
    dtype = precision(device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    first_epoch, accuracy = 1, 0.0
    checkpoint = trial.load_checkpoint()
    if checkpoint is not None:
        state: Any = checkpoint.state
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        first_epoch, accuracy = checkpoint.step + 1, state["accuracy"]

    trained = model if trial.world_size == 1 else DistributedDataParallel(model)
    for epoch in range(first_epoch, EPOCHS + 1):
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * (epoch - 1) / EPOCHS)) / 2
        loss = train_epoch(trial, trained, optimizer, scaler, train, batch_size, epoch)
        accuracy = evaluate(model, validation)  # all ranks, on the same weights: the same on all
        trial.report(accuracy, epoch)
        trial.log({"train/loss": loss}, epoch)
        if epoch < EPOCHS and trial.should_prune():
            raise optuna.TrialPruned
        stop = trial.should_stop()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        trial.save_checkpoint({**state, "scaler": scaler.state_dict(), "accuracy": accuracy}, epoch)
        if stop:
            break  # the trial goes on from here in its next attempt
    return accuracy


def train_epoch(
    trial: tuner.Trial,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
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
        with autocast(trial.device):
            loss = cross_entropy(model(data.images[mine]), data.labels[mine], reduction="sum")
        optimizer.zero_grad()
        # The mean over the whole batch, though the shares of the ranks may differ by one row.
        scaler.scale(loss * (trial.world_size / len(batch))).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)  # leaves out a step whose gradients overflowed: on all ranks, which share them
        scaler.update()
        total += loss.detach()
    if trial.world_size > 1:
        dist.all_reduce(total)
    return total.item() / len(data)


@torch.no_grad()
def evaluate(model: nn.Module, data: Split) -> float:
    """Accuracy of the model on the data, 0 to 1."""
    model.eval()
    hits = 0
    for images, labels in zip(torch.split(data.images, 1000), torch.split(data.labels, 1000), strict=True):
        with autocast(images.device):
            hits += int((model(images).argmax(dim=1) == labels).sum())
    return hits / len(data)


def precision(device: torch.device) -> torch.dtype:
    """The type in which a device computes the forward pass."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def autocast(device: torch.device) -> torch.autocast:
    """A block in which the forward pass runs in the device's precision."""
    dtype = precision(device)
    if dtype is torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype)


def network(channels: int, dropout: float, side: int) -> nn.Sequential:
    """Two convolutions and a linear layer: logits of shape (n, 10) for images (n, 1, side, side)."""
    return nn.Sequential(
        *[nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
        *[nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
        *[nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * channels * (side // 4) ** 2, CLASSES)],
    )


@functools.cache
def load_images(part: str) -> Split:
    """``"train"`` or ``"validation"``: images (n, 1, side, side) with pixels from 0 to 1, and labels (n,).

    The side is 28 for Fashion-MNIST, of which both parts are cut from the training file, and 8 for
    the digits. The test file stays unread: whoever chooses by it has no test any more.

    Example:
        >>> images = load_images("validation").images
        >>> images.shape[1], images.min().item(), images.max().item()
        (1, 0.0, 1.0)
    """
    folder = Path(os.environ.get("FASHION_MNIST", DEBIAN))
    if not (folder / "train-images-idx3-ubyte.gz").exists():
        digits = load_data(part)
        return Split(images=digits.images.reshape(-1, 1, 8, 8), labels=digits.labels)
    first = 0 if part == "train" else ROWS["train"]
    rows = slice(first, first + ROWS[part])
    images = read_idx(folder / "train-images-idx3-ubyte.gz")[rows]
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz")[rows]
    return Split(images=images.unsqueeze(1) / 255, labels=labels.long())


def read_idx(path: Path) -> Tensor:
    """A compressed IDX file of bytes as a tensor of its shape.

    The form: two zeros, 8 for bytes, the number of dimensions, the dimensions as big-endian words,
    then the data (LeCun, http://yann.lecun.com/exdb/mnist).
    """
    data = gzip.decompress(path.read_bytes())
    shape = numpy.frombuffer(data, ">u4", count=data[3], offset=4)
    pixels = numpy.frombuffer(data, numpy.uint8, offset=4 + 4 * data[3])
    return torch.tensor(pixels).reshape(*map(int, shape))
