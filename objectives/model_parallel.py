"""Model parallel: one network split over the ranks of a trial, each of which holds a part of its layers.

What it teaches:

- **A model that no single device has to hold.** The layers are cut into consecutive stages of about equal
  size, one for each rank: of two ranks none has more than 60 percent of the parameters.
- **A pipeline.** A batch is cut into micro-batches: while a later stage works on one, the stage before it
  works on the next (the schedule of GPipe, Huang et al. 2019). What crosses is activations and their
  gradients, from neighbour to neighbour; the weights never move.
- **The same training.** Each block's first weights follow from (seed, block), so that the split changes
  nothing: two ranks have the losses of one, but for rounding.
- **A checkpoint of parts.** Every rank saves its own stage, and gets its own back.

::

    study = tuner.create_study("split", direction="maximize")
    tuner.optimize(study, objective, n_trials=10, resources=tuner.Resources(ranks=2))
"""

from __future__ import annotations

import math

import optuna
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tuner
from objectives.digits import CLASSES, PIXELS, Split, load_data, seed_torch

__all__ = ["EPOCHS", "MICRO_BATCHES", "objective", "stage_of"]

EPOCHS = 9
MICRO_BATCHES = 4
DEPTH = 5
"""Hidden layers, all of one width."""


def objective(trial: tuner.Trial) -> float:
    """Train with the trial's parameters and return the last validation accuracy, 0 to 1.

    Parameters: ``lr``, ``width`` (64 to 256), ``batch_size``.

    Example:
        >>> study = tuner.create_study("stages", storage="sqlite:///tuner.db", direction="maximize",
        ...                            pruner="threshold(lower=1)")  # one epoch will do here
        >>> study.enqueue_trial({"width": 16})
        >>> study = tuner.optimize(study, objective, n_trials=1, executor="inline")
        >>> study.trials[0].state.name, len(study.trials[0].intermediate_values)
        ('PRUNED', 1)
    """
    lr = trial.suggest_float("lr", 1e-3, 0.1, log=True)
    width = trial.suggest_int("width", 64, 256, log=True)
    batch_size = trial.suggest_categorical("batch_size", [32, 64, 128])

    train, validation = load_data("train").to(trial.device), load_data("validation").to(trial.device)
    stage = stage_of(width, trial.rank, trial.world_size, trial.seed).to(trial.device)
    optimizer = torch.optim.SGD(stage.parameters(), lr, momentum=0.9)

    first_epoch, accuracy = 1, 0.0
    checkpoint = trial.load_checkpoint()
    if checkpoint is not None:
        state = checkpoint.state
        assert isinstance(state, dict)
        stage.load_state_dict(state["stage"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch, accuracy = checkpoint.step + 1, state["accuracy"]

    for epoch in range(first_epoch, EPOCHS + 1):
        loss = train_epoch(trial, stage, optimizer, train, batch_size, width, epoch)
        accuracy = evaluate(trial, stage, validation, width)
        trial.report(accuracy, epoch)
        trial.log({"train/loss": loss}, epoch)
        if epoch < EPOCHS and trial.should_prune():
            raise optuna.TrialPruned
        stop = trial.should_stop()
        state = {"stage": stage.state_dict(), "optimizer": optimizer.state_dict(), "accuracy": accuracy}
        trial.save_checkpoint(state, epoch)
        if stop:
            break  # the trial goes on from here in its next attempt
    return accuracy


def stage_of(width: int, rank: int, world_size: int, seed: int) -> nn.Sequential:
    """This rank's part of the network: consecutive blocks, chosen by the middle of their share of all
    parameters. Every rank comes to the same cut, and makes only the blocks that it holds.

    Example:
        >>> [len(stage_of(width=32, rank=rank, world_size=2, seed=1)) for rank in (0, 1)]
        [4, 7]
    """
    shapes = [(PIXELS, width), *[(width, width)] * (DEPTH - 1), (width, CLASSES)]
    sizes = [inputs * outputs + outputs for inputs, outputs in shapes]
    blocks: list[nn.Module] = []
    before = 0
    for number, ((inputs, outputs), size) in enumerate(zip(shapes, sizes, strict=True)):
        if math.floor((before + size / 2) / sum(sizes) * world_size) == rank:
            seed_torch(seed, number)
            layer = nn.Linear(inputs, outputs)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # else five layers hardly begin
            blocks.append(layer)
            if number < DEPTH:
                blocks.append(nn.ReLU())
        before += size
    return nn.Sequential(*blocks)


def train_epoch(
    trial: tuner.Trial,
    stage: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Split,
    batch_size: int,
    width: int,
    epoch: int,
) -> float:
    """One pass over the data; the mean loss, the same on all ranks."""
    seed_torch(trial.seed, epoch, 1_000)
    order = torch.randperm(len(data)).to(trial.device)  # the same on all ranks
    total = torch.zeros((), device=trial.device)
    for batch in torch.split(order, batch_size):
        optimizer.zero_grad()
        total += train_batch(trial, stage, data, batch, width)
        optimizer.step()
    return _from_last(trial, total).item() / len(data)


def train_batch(trial: tuner.Trial, stage: nn.Module, data: Split, batch: Tensor, width: int) -> Tensor:
    """Forward and backward through all stages; the summed loss on the last rank, 0 elsewhere."""
    first, last = trial.rank == 0, trial.rank == trial.world_size - 1
    parts = torch.chunk(batch, MICRO_BATCHES)
    given: list[Tensor] = []
    made: list[Tensor] = []
    sends: list[dist.Work] = []
    total = torch.zeros((), device=trial.device)
    for part in parts:
        rows = data.images[part] if first else _received(trial, (len(part), width), trial.rank - 1)
        given.append(rows.requires_grad_(not first))
        made.append(stage(rows))
        if not last:
            work = dist.isend(made[-1].detach(), trial.rank + 1)
            assert work is not None
            sends.append(work)
    for part, rows, output in zip(parts, given, made, strict=True):
        if last:
            loss = cross_entropy(output, data.labels[part], reduction="sum")
            (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        else:
            output.backward(_received(trial, output.shape, trial.rank + 1))  # type: ignore[no-untyped-call]
        if not first:
            assert rows.grad is not None
            dist.send(rows.grad, trial.rank - 1)
    for work in sends:
        work.wait()
    return total


@torch.no_grad()
def evaluate(trial: tuner.Trial, stage: nn.Module, data: Split, width: int) -> float:
    """Accuracy on the data, 0 to 1, the same on all ranks."""
    rows = data.images
    if trial.rank > 0:
        rows = _received(trial, (len(data), width), trial.rank - 1)
    output = stage(rows)
    hits = torch.zeros((), device=trial.device)
    if trial.rank < trial.world_size - 1:
        dist.send(output, trial.rank + 1)
    else:
        hits += (output.argmax(dim=1) == data.labels).sum()
    return _from_last(trial, hits).item() / len(data)


def _received(trial: tuner.Trial, shape: tuple[int, ...], rank: int) -> Tensor:
    tensor = torch.empty(shape, device=trial.device)
    dist.recv(tensor, rank)
    return tensor


def _from_last(trial: tuner.Trial, value: Tensor) -> Tensor:
    """What the last rank knows, on all."""
    if trial.world_size > 1:
        dist.broadcast(value, trial.world_size - 1)
    return value
