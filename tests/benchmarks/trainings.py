"""What is trained in ``make bench-train``: objectives of Tuner, and the same loop as a script of torchrun.

Each writes what it measured as JSON to the file that ``TUNER_BENCH_RESULT`` names (with the rank behind it).
``TUNER_BENCH_SECONDS`` is the length of a measurement.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

__all__ = ["reporting", "start", "throughput"]

EPOCH = 50
"""Steps of the training between two reports."""

STEP = 0.001
"""Seconds of a step while reporting is measured."""

BLOCK = 200
"""Steps without a break, with or without a report after each."""


def start(trial: Any) -> float:
    """Its first line is what is measured."""
    now = time.monotonic()
    from tests.benchmarks import probe

    probe.stamps["first line"] = now
    _write(trial.rank, probe.stamps)
    dist.barrier()
    return 0.0


def throughput(trial: Any) -> float:
    """A report and a question to the pruner every epoch, as in a training that is tuned."""

    def after_epoch(epoch: int, loss: float) -> None:
        trial.report(loss, epoch)
        trial.should_prune()

    rate = _train(after_epoch)
    _write(trial.rank, {"steps/s": rate})
    return rate


def reporting(trial: Any) -> float:
    """Blocks of steps with a report after each in turn with blocks without, for both kinds of step."""
    step, found = 0, {}
    for name, work in (("torch", _torch_step()), ("busy", _busy_step)):
        sides: dict[bool, list[float]] = {False: [], True: []}
        until = time.monotonic() + _seconds()
        while time.monotonic() < until or len(sides[True]) < 3:
            for reports in (False, True) if len(sides[True]) % 2 else (True, False):
                began = time.perf_counter()
                for _ in range(BLOCK):
                    work()
                    if reports:
                        trial.report(0.5, step)
                        step += 1
                sides[reports].append((time.perf_counter() - began) / BLOCK)
        found[name] = {"without": sides[False], "with": sides[True]}
    _write(trial.rank, found)
    return 0.0


def _train(after_epoch: Callable[[int, float], None]) -> float:
    """Steps a second of a network as for the digits data set, after a warm-up."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    model = nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data, labels = torch.randn(64, 64), torch.randint(10, (64,))
    steps, began, epoch = 0, time.perf_counter(), 0
    is_over = torch.zeros(1)
    while not is_over.item():
        for _ in range(EPOCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data), labels)
            loss.backward()
            optimizer.step()
        after_epoch(epoch, loss.item())
        epoch += 1
        if epoch == 2:
            steps, began = 0, time.perf_counter()
        else:
            steps += EPOCH
        is_over.fill_(float(dist.get_rank() == 0 and epoch > 2 and time.perf_counter() - began > _seconds()))
        dist.broadcast(is_over, 0)
    return steps / (time.perf_counter() - began)


def _torch_step() -> Callable[[], object]:
    """Products of matrices, as many as take about :data:`STEP`."""
    a, b = torch.randn(96, 96), torch.randn(96, 96)

    def products(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b)

    products(1000)
    took = []
    for _ in range(20):
        began = time.perf_counter()
        products(100)
        took.append((time.perf_counter() - began) / 100)
    count = max(1, round(STEP / statistics.median(took)))
    return lambda: products(count)


def _busy_step() -> None:
    until = time.perf_counter() + STEP
    while time.perf_counter() < until:
        pass


def _seconds() -> float:
    return float(os.environ["TUNER_BENCH_SECONDS"])


def _write(rank: int, found: dict[str, Any]) -> None:
    Path(f"{os.environ['TUNER_BENCH_RESULT']}.{rank}").write_text(json.dumps(found))


def main() -> None:
    """The script that torchrun starts on each rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    _write(dist.get_rank(), {"steps/s": _train(lambda epoch, loss: None)})
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
