"""Batches of an epoch over the ranks of a trial, which go on inside an epoch, also with other ranks.

A *logical batch* is what one optimiser step sees over all ranks. The order of an epoch follows from
(seed, epoch) alone, and what was seen of it is a prefix: one number says it, whatever the ranks were.
So a checkpoint of four ranks goes on with one, or the reverse, and each sample is seen exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from tuner.errors import BadInput
from tuner.seeds import derived_seed

__all__ = ["DistributedBatches", "Loader", "Ranked"]


class Ranked(Protocol):
    """What is needed of a trial: its place among the ranks, and its seed."""

    rank: int
    world_size: int
    seed: int


class DistributedBatches(Sampler[list[int]]):
    """This rank's indices of each logical batch: a ``batch_sampler`` for a ``DataLoader``.

    All ranks get as many batches, and the rows of a batch differ by at most one between ranks. A last
    batch with fewer rows than ranks leaves some ranks an empty list; :class:`Loader` makes an empty
    batch of it, and ``drop_last`` avoids it.

    Iterating does not count: a ``DataLoader`` with workers fetches ahead. The loop says what was
    trained with :meth:`consumed`; :class:`Loader` does that itself.

    Args:
        size: samples of the data set.
        trial: gives rank, world size and seed.
        batch_size: rows of a logical batch, over all ranks.
        shuffle: a permutation of (seed, epoch); else in order.
        drop_last: leave out a last batch that is not full.
        seed: default: the trial's.

    Attributes:
        epoch: from 0.
        seen: samples of the epoch that all ranks together have consumed.

    Raises:
        BadInput: ``batch_size`` is not at least 1.

    Example:
        >>> from types import SimpleNamespace as Place
        >>> [list(DistributedBatches(5, Place(rank=rank, world_size=2, seed=0), 4, shuffle=False))
        ...  for rank in (0, 1)]
        [[[0, 2], [4]], [[1, 3], []]]
    """

    def __init__(
        self,
        size: int,
        trial: Ranked,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise BadInput(f"batch_size={batch_size}: give the rows of a batch over all ranks, at least 1")
        self.epoch = 0
        self.seen = 0
        self._size = size
        self._rank, self._world_size = trial.rank, trial.world_size
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._seed = trial.seed if seed is None else seed

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        start = self.seen
        while rows := self.rows_at(start):
            yield order[start : start + rows][self._rank :: self._world_size]
            start += rows

    def __len__(self) -> int:
        """Batches of the epoch that are not yet consumed."""
        left = self._size - self.seen
        return left // self._batch_size if self._drop_last else -(-left // self._batch_size)

    def rows_at(self, seen: int) -> int:
        """Rows, over all ranks, of the logical batch after ``seen`` samples; 0: the epoch ends there."""
        rows = min(self._batch_size, self._size - seen)
        return 0 if self._drop_last and rows < self._batch_size else rows

    def consumed(self, batches: int = 1) -> None:
        """Count logical batches as trained."""
        for _ in range(batches):
            self.seen += self.rows_at(self.seen)

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch, self.seen = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Plain numbers for a checkpoint, the same on all ranks."""
        return {"epoch": self.epoch, "seen": self.seen, "seed": self._seed, "size": self._size}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where ``state`` was taken, whatever the number of ranks and the batch size were.

        Raises:
            BadInput: the data set has another size than then.
        """
        if state["size"] != self._size:
            raise BadInput(
                f"the data set has {self._size} samples, but the checkpoint is of {state['size']}; "
                "go on with the same data, or do not load this state"
            )
        self.epoch, self.seen, self._seed = state["epoch"], state["seen"], state["seed"]

    def _order(self) -> list[int]:
        if not self._shuffle:
            return list(range(self._size))
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "epoch", self.epoch))
        return torch.randperm(self._size, generator=generator).tolist()


class Loader:
    """The batches of a data set for this rank; iterating goes on with what the epoch has not yet seen.

    A batch counts as consumed from the moment it is given to the loop, so a state that is taken in the
    loop's body includes it, and what workers have fetched ahead is not in it. The end of the iteration
    begins the next epoch; after a ``break`` the next iteration goes on in the same one.

    Args:
        dataset: with ``__len__`` and ``__getitem__``.
        trial: gives rank, world size and seed.
        batch_size: rows of a logical batch, over all ranks.
        shuffle, drop_last, seed: see :class:`DistributedBatches`.
        options: of ``torch.utils.data.DataLoader``, such as ``num_workers=2``.

    Attributes:
        rows: rows, over all ranks, of the batch that the loop has now.

    In an objective::

        loader = tuner.torch.Loader(dataset, trial, batch_size=256, num_workers=2)
        saved = trial.load_checkpoint()
        if saved:
            loader.load_state_dict(saved.state["loader"])
        for epoch in range(loader.epoch, 10):
            for images, labels in loader:
                ...
                trial.save_checkpoint({"loader": loader.state_dict(), ...}, step)

    Example:
        >>> from types import SimpleNamespace as Place
        >>> trial = Place(rank=0, world_size=1, seed=0)
        >>> loader = Loader(torch.utils.data.TensorDataset(torch.arange(5.0)), trial, batch_size=2)
        >>> [len(rows) for (rows,) in loader], loader.epoch
        ([2, 2, 1], 1)
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        trial: Ranked,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        size = len(dataset)  # type: ignore[arg-type]
        self.rows = 0
        self._batches = DistributedBatches(
            size, trial, batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed
        )
        collate = _Collate(dataset, options.pop("collate_fn", None) or default_collate)
        self._loader = DataLoader(dataset, batch_sampler=self._batches, collate_fn=collate, **options)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of, from 0."""
        return self._batches.epoch

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            self.rows = self._batches.rows_at(self._batches.seen)
            self._batches.consumed()
            yield batch
        self._batches.next_epoch()

    def __len__(self) -> int:
        """Batches of the epoch that are not yet consumed."""
        return len(self._batches)

    def state_dict(self) -> dict[str, int]:
        """See :meth:`DistributedBatches.state_dict`."""
        return self._batches.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """See :meth:`DistributedBatches.load_state_dict`."""
        self._batches.load_state_dict(state)


class _Collate:
    """Collates, also no samples at all: tensors with the right shapes and no rows, so that a rank
    without a share of the last batch takes part in its collectives."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self._dataset = dataset
        self._collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        if samples:
            return self._collate(samples)
        return pytree.tree_map_only(torch.Tensor, lambda rows: rows[:0], self._collate([self._dataset[0]]))
