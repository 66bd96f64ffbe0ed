"""Gradient compression under DDP, with the bytes counted at the hook.

fp16 and bf16 halve what is communicated; PowerSGD (Vogels et al., 2019, arXiv:1905.13727) sends
low-rank factors of each gradient and feeds the error of one step into the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from tuner.errors import BadInput

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket

    _Hook = Callable[[GradBucket], torch.futures.Future[torch.Tensor]]

__all__ = ["Compression", "Traffic", "compress", "traffic"]

KINDS = ("none", "fp16", "bf16", "powersgd")

_COUNTER = "_tuner_traffic"


@dataclass(frozen=True, kw_only=True)
class Compression:
    """How gradients are compressed.

    Args:
        kind: ``"fp16"``, ``"bf16"``, ``"powersgd"``, or ``"none"``, which only counts.
        rank: of PowerSGD's approximation: a matrix of n by m is sent as (n + m) * rank numbers.
        start: steps before PowerSGD begins, at least 2; early gradients bear no compression, and a
            tenth of the training is a good choice.

    Raises:
        BadInput: an unknown kind, or a number out of range.

    Example:
        >>> Compression(kind="powersgd", rank=2, start=100).rank
        2
    """

    kind: str
    rank: int = 1
    start: int = 10

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput(f"compression={self.kind!r}: give one of {', '.join(KINDS)}")
        if self.rank < 1 or self.start < 2:
            raise BadInput(f"rank={self.rank}, start={self.start}: give at least 1 and at least 2")


@dataclass(kw_only=True)
class Traffic:
    """What this rank gave to the all-reduce so far; the way of the bytes over the network is the backend's.

    Attributes:
        steps: backward passes that communicated.
        bytes_plain: bytes of the gradients as they are.
        bytes_sent: bytes after compression.

    Example:
        >>> counted = Traffic(steps=10, bytes_plain=8_000, bytes_sent=4_000)
        >>> counted.bytes_plain / counted.bytes_sent
        2.0
    """

    steps: int = 0
    bytes_plain: int = 0
    bytes_sent: int = 0


def traffic(model: nn.Module) -> Traffic:
    """The counter of a model that :func:`tuner.torch.prepare` gave a ``compression``; it goes on counting.

    It stays at zero on one rank, where nothing is communicated.

    Raises:
        BadInput: the model was prepared without ``compression``.

    Example:
        >>> from types import SimpleNamespace as Place
        >>> trial = Place(world_size=1, device=torch.device("cpu"))
        >>> traffic(tuner.torch.prepare(nn.Linear(2, 1), trial, compression="none")).steps
        0
    """
    found = getattr(model, _COUNTER, None)
    if not isinstance(found, Traffic):
        raise BadInput('this model counts no bytes; prepare it with compression="none" or another kind')
    return found


def compress(model: nn.Module, compression: Compression) -> None:
    """Compress and count what DDP communicates; any other module only gets its counter."""
    counter = Traffic()
    setattr(model, _COUNTER, counter)
    if isinstance(model, DistributedDataParallel):
        hook = (_powersgd if compression.kind == "powersgd" else _narrower)(compression, counter)
        # A lambda: DDP compares annotations with its own types, and ours are text.
        model.register_comm_hook(None, lambda state, bucket: hook(bucket))


def _narrower(compression: Compression, counter: Traffic) -> _Hook:
    hooks: dict[str, tuple[Any, int | None]] = {
        "none": (default_hooks.allreduce_hook, None),
        "fp16": (default_hooks.fp16_compress_hook, 2),
        "bf16": (default_hooks.bf16_compress_hook, 2),
    }
    inner, width = hooks[compression.kind]

    def hook(bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        gradients = bucket.buffer()
        _count(counter, bucket, gradients.numel() * (width or gradients.element_size()))
        return cast(torch.futures.Future[torch.Tensor], inner(None, bucket))

    return hook


def _powersgd(compression: Compression, counter: Traffic) -> _Hook:
    power = PowerSGDState(
        None, matrix_approximation_rank=compression.rank, start_powerSGD_iter=compression.start
    )

    def hook(bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        gradients = bucket.buffer()
        before, early = power.total_numel_after_compression, power.iter < power.start_powerSGD_iter
        future = powerSGD_hook(power, bucket)
        numbers = gradients.numel() if early else power.total_numel_after_compression - before
        _count(counter, bucket, numbers * gradients.element_size())
        return future

    return hook


def _count(counter: Traffic, bucket: GradBucket, sent: int) -> None:
    gradients = bucket.buffer()
    counter.bytes_plain += gradients.numel() * gradients.element_size()
    counter.bytes_sent += sent
    counter.steps += bucket.is_last()
