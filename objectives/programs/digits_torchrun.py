r"""torchrun: a classifier of digits on data-parallel ranks that torchrun starts.

What it teaches: a script that is started by ``torchrun`` today is tuned without a change. It prints its
accuracy as JSON, a line for each epoch, by which a bad trial is pruned; SIGTERM makes ``torchrun`` end its
ranks. In the folder that Tuner names it keeps a checkpoint, from which another attempt goes on::

    tuner run --study torchrun --trials 12 --direction maximize --metric accuracy --cpus 2 \
        --param 'lr=log(1e-3,10)' --param 'width=32|64|128' --command 'torchrun --standalone \
        --nproc-per-node 2 objectives/programs/digits_torchrun.py {lr} {width}'
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

EPOCHS = 10
TRAIN = 1500


def main(lr: float, width: int) -> None:
    """Train on the first 1,500 digits; rank 0 prints the accuracy on the other 297 after each epoch."""
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(int(os.environ.get("TUNER_SEED", "0")) % 2**31)
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images, mine = images.float() / 16, slice(rank, TRAIN, ranks)

    layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    model = DistributedDataParallel(layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    file = Path(os.environ.get("TUNER_FOLDER", ".")) / "last.pt"
    first = 0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        layers.load_state_dict(saved["layers"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"] + 1

    for epoch in range(first, EPOCHS):
        for batch in torch.split(torch.arange(TRAIN)[mine], 64):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if rank == 0:
            with torch.no_grad():
                accuracy = (layers(images[TRAIN:]).argmax(1) == labels[TRAIN:]).float().mean().item()
            state = {"layers": layers.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            torch.save(state, file.with_suffix(".new"))
            os.replace(file.with_suffix(".new"), file)  # whole or not at all
            print(json.dumps({"accuracy": accuracy, "step": epoch}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
