"""A model on its rank's device, distributed over the ranks of its trial."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tuner.errors import BadInput
from tuner.torch.compression import Compression, compress

__all__ = ["Placed", "prepare"]

STRATEGIES = ("ddp", "fsdp", None)


class Placed(Protocol):
    """What is needed of a trial: how many ranks it has, and this one's device."""

    world_size: int

    @property
    def device(self) -> torch.device: ...


def prepare(
    model: nn.Module,
    trial: Placed,
    strategy: str | None = "ddp",
    *,
    compression: str | Compression | None = None,
    blocks: Iterable[type[nn.Module]] = (),
    **options: Any,
) -> nn.Module:
    """The model on ``trial.device``, ready to train on all ranks; on one rank it is only moved.

    Call it on all ranks, with the same model, before the optimiser is made: FSDP replaces parameters.
    Under DDP save the state of the model that you gave: it has the same keys with one rank and several,
    and those of the model that you get begin with ``module.``

    Args:
        model: the same weights on all ranks, as a seed of the trial's gives them.
        trial: gives the world size and the device.
        strategy: ``"ddp"``: each rank holds all of the model; ``"fsdp"``: each holds a part (FSDP2);
            None: only moved.
        compression: of the gradients under DDP: ``"fp16"``, ``"bf16"``, ``"powersgd"``, a
            :class:`Compression`, or ``"none"``, which only counts. Then
            :func:`tuner.torch.traffic` says what was sent.
        blocks: FSDP: types of modules that are gathered one by one, such as a transformer's layer.
        options: further arguments of ``DistributedDataParallel`` or ``fully_shard``.

    Raises:
        BadInput: an unknown strategy or compression, or a compression without DDP.

    In an objective::

        model = tuner.torch.prepare(network, trial)
        trial.save_checkpoint({"network": network.state_dict()}, step)
        model = tuner.torch.prepare(network, trial, compression="bf16")
        model = tuner.torch.prepare(network, trial, "fsdp", blocks=[nn.TransformerEncoderLayer])

    Example:
        >>> from types import SimpleNamespace as Place
        >>> trial = Place(rank=0, world_size=1, device=torch.device("cpu"), seed=0)
        >>> model = tuner.torch.prepare(torch.nn.Linear(2, 1), trial, compression="bf16")
        >>> tuner.torch.traffic(model).bytes_sent  # one rank sends nothing
        0
    """
    if strategy not in STRATEGIES:
        raise BadInput(f'strategy={strategy!r}: give "ddp", "fsdp" or None')
    if compression is not None and strategy != "ddp":
        raise BadInput(f'compression={compression!r} needs strategy="ddp", not {strategy!r}')
    if isinstance(compression, str):
        compression = Compression(kind=compression)
    model = model.to(trial.device)
    if trial.world_size > 1 and strategy == "fsdp":
        _shard(model, trial, tuple(blocks), options)
    elif trial.world_size > 1 and strategy == "ddp":
        model = DistributedDataParallel(model, **options)
    if compression is not None:
        compress(model, compression)
    return model


def _shard(model: nn.Module, trial: Placed, blocks: tuple[type[nn.Module], ...], options: Any) -> None:
    mesh = init_device_mesh(trial.device.type, (trial.world_size,))
    inner = [module for module in model.modules() if module is not model and isinstance(module, blocks)]
    for module in reversed(inner):  # from the inside out: a module takes what its parts left
        fully_shard(module, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
