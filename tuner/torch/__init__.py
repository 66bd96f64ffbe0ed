"""What saves plumbing in a distributed objective. All of it is optional: the rest of Tuner knows none of it.

::

    def objective(trial):
        model = tuner.torch.prepare(network(trial), trial)
        loader = tuner.torch.Loader(dataset, trial, batch_size=256)  # over all ranks, however many
        accumulation = tuner.torch.Accumulation(model, micro_batch=32)
        ...
        for epoch in range(loader.epoch, 10):
            for images, labels in loader:
                optimizer.zero_grad()
                for micro in accumulation.split(images, labels, of=loader.rows):
                    x, y = micro.tensors
                    micro.backward(cross_entropy(model(x), y, reduction="none"))
                optimizer.step()

``tuner.torch`` is there after ``import tuner``, and PyTorch is imported when it is first used.
"""

from __future__ import annotations

from tuner.torch.accumulation import Accumulation, MicroBatch
from tuner.torch.batches import DistributedBatches, Loader
from tuner.torch.compression import Compression, Traffic, traffic
from tuner.torch.model import prepare
from tuner.torch.sharded import load_sharded, save_sharded

__all__ = [
    "Accumulation",
    "Compression",
    "DistributedBatches",
    "Loader",
    "MicroBatch",
    "Traffic",
    "load_sharded",
    "prepare",
    "save_sharded",
    "traffic",
]
