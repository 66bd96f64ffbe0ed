"""Gradient accumulation in which one rank or many have the gradient of the whole logical batch.

DDP and FSDP2 average gradients over the ranks. With ``W`` ranks and ``B`` rows of a logical batch, the
sum of a micro-batch's losses times ``W / B`` gives, added up over micro-batches and averaged over ranks,
the mean over all ``B`` rows, however unevenly these lie. Only the last micro-batch communicates
gradients. FSDP2 gathers parameters in every pass, so there all ranks make as many passes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from tuner.errors import BadInput

__all__ = ["Accumulation", "MicroBatch"]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A part of this rank's share of a logical batch.

    Attributes:
        tensors: as they were given to :meth:`Accumulation.split`, with ``rows`` rows each.
        rows: at most ``micro_batch``; 0 where this rank has no share.
        scale: what the sum of the losses of the rows is multiplied by.

    Example:
        >>> import torch
        >>> weight = torch.tensor([3.0], requires_grad=True)
        >>> micro = MicroBatch(tensors=(torch.tensor([[1.0], [2.0]]),), rows=2, scale=1 / 4)
        >>> micro.backward((micro.tensors[0] * weight).sum(1)).item()  # of a logical batch of 4 rows
        2.25
        >>> weight.grad.item()
        0.75
    """

    tensors: tuple[Tensor, ...]
    rows: int
    scale: float

    def backward(self, losses: Tensor) -> Tensor:
        """Add the gradient of these rows; returns their part of the logical batch's mean loss.

        Args:
            losses: of each row, of shape ``(rows,)``, or their sum. Not their mean: a share without
                rows has none.
        """
        total = losses.sum()
        (total * self.scale).backward()  # type: ignore[no-untyped-call]
        return total.detach() * self.scale


class Accumulation:
    """Splits this rank's share of a logical batch into micro-batches that its memory holds.

    Args:
        model: what :func:`tuner.torch.prepare` returned, or any DDP or FSDP2 model, compiled or not. Of a
            plain module on several ranks, sum the gradients over the ranks yourself.
        micro_batch: the most rows of a forward and backward pass on this rank.

    Raises:
        BadInput: ``micro_batch`` is not at least 1.

    In an objective::

        optimizer.zero_grad()
        for micro in accumulation.split(images, labels, of=loader.rows):
            x, y = micro.tensors
            micro.backward(cross_entropy(model(x), y, reduction="none"))
        optimizer.step()

    Example:
        >>> import torch
        >>> model = nn.Linear(1, 1, bias=False)
        >>> x = torch.arange(5.0)[:, None]
        >>> for micro in Accumulation(model, micro_batch=2).split(x, of=5):
        ...     loss = micro.backward(model(*micro.tensors).squeeze(1))
        >>> model.weight.grad.item() == x.mean().item()
        True
    """

    def __init__(self, model: nn.Module, micro_batch: int) -> None:
        if micro_batch < 1:
            raise BadInput(f"micro_batch={micro_batch}: give the rows of a pass, at least 1")
        self._model = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
        self._micro_batch = micro_batch
        distributed = isinstance(self._model, DistributedDataParallel | FSDPModule)
        self._world_size = dist.get_world_size() if distributed else 1

    def split(self, *tensors: Tensor, of: int) -> Iterator[MicroBatch]:
        """The micro-batches of this rank's share; each needs its forward and backward pass in turn.

        Args:
            tensors: this rank's share, each with its rows in the first dimension.
            of: rows of the logical batch over all ranks, as :attr:`Loader.rows` has them.

        Raises:
            BadInput: the tensors have different numbers of rows, or more than ``of``; under FSDP2, more
                than an even share of them.
        """
        counts = {len(tensor) for tensor in tensors}
        if len(counts) != 1:
            raise BadInput(f"split: the tensors have {sorted(counts)} rows; give one or more with as many")
        rows = counts.pop()
        if rows > of:
            raise BadInput(f"split: of={of} rows over all ranks, but this rank alone has {rows}")
        passes = self._passes(rows, of)
        for index in range(passes):
            start = min(index * self._micro_batch, rows)
            end = min(start + self._micro_batch, rows)
            parts = tuple(tensor[start:end] for tensor in tensors)
            with self._communicating(index == passes - 1):
                yield MicroBatch(tensors=parts, rows=end - start, scale=self._world_size / of)

    def _passes(self, rows: int, of: int) -> int:
        """A rank without rows makes an empty pass: the others wait for it in their last."""
        if not isinstance(self._model, FSDPModule):
            return max(1, -(-rows // self._micro_batch))
        most = -(-of // self._world_size)
        if rows > most:
            raise BadInput(f"split: {rows} of {of} rows on one rank; FSDP needs even shares, at most {most}")
        return max(1, -(-most // self._micro_batch))

    def _communicating(self, now: bool) -> AbstractContextManager[None]:
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_gradient_sync(now)
            return contextlib.nullcontext()
        if isinstance(self._model, DistributedDataParallel) and not now:
            return _no_sync(self._model)
        return contextlib.nullcontext()


@contextlib.contextmanager
def _no_sync(model: DistributedDataParallel) -> Iterator[None]:
    with model.no_sync():
        yield
