"""What gradient compression saves and costs: an MLP on digits, two ranks, gloo.

::

    python -m tests.benchmarks.compression
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from objectives.digits import load_data
from tuner.torch import Accumulation, Compression, Loader, prepare, traffic

CPU = torch.device("cpu")
KINDS = ("none", "fp16", "bf16", "powersgd")
BATCH, WIDTH = 64, 128


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Of one training: what a rank sent, and the accuracy on the validation images, 0 to 1."""

    parameters: int
    steps: int
    plain: int
    sent: int
    accuracy: float


def train(place: Any, kind: str, epochs: int) -> Figure:
    """Train on all ranks of ``place``, whose process group is there."""
    torch.manual_seed(place.seed)
    network = torch.nn.Sequential(
        torch.nn.Linear(64, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(),
        torch.nn.Linear(WIDTH, 10),
    )  # fmt: skip
    model = prepare(network, place, compression=Compression(kind=kind))
    data, validation = load_data("train"), load_data("validation")
    loader = Loader(TensorDataset(data.images, data.labels), place, BATCH)
    accumulation = Accumulation(model, BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.8)
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            for micro in accumulation.split(images, labels, of=loader.rows):
                x, y = micro.tensors
                micro.backward(cross_entropy(model(x), y, reduction="none"))
            optimizer.step()
    with torch.no_grad():
        hits = network(validation.images).argmax(1) == validation.labels
    counted = traffic(model)
    return Figure(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        steps=counted.steps,
        plain=counted.bytes_plain,
        sent=counted.bytes_sent,
        accuracy=hits.double().mean().item(),
    )


@dataclass(frozen=True, kw_only=True)
class _Place:
    rank: int
    world_size: int = 2
    seed: int = 1
    device: torch.device = CPU


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    for kind in KINDS:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{kind}", rank=rank, world_size=2)
        figure = train(_Place(rank=rank), kind, epochs=20)
        dist.barrier()
        dist.destroy_process_group()
        if rank == 0:
            per_step, plain = figure.sent / figure.steps, figure.plain / figure.steps
            print(f"{kind:10} {plain:12,.0f} {per_step:12,.0f} {figure.accuracy:10.4f}")


def main() -> int:
    """Print the table."""
    print(f"{'kind':10} {'plain B/step':>12} {'sent B/step':>12} {'accuracy':>10}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        other = os.fork()
        if other == 0:
            _rank(1, folder)
            os._exit(0)
        _rank(0, folder)
        return os.waitpid(other, 0)[1]


if __name__ == "__main__":
    sys.exit(main())
