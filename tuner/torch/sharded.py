"""Checkpoints of sharded states (FSDP2, DTensor), which any number of ranks can go on from.

``torch.distributed.checkpoint`` (DCP) plans, writes, cuts and reads the tensors; what it does with
pickles is left out. It would gather one index of all parts on rank 0 and pickle it; here each rank
writes an index of its own part, as JSON, into its own ``trial.checkpoint_dir``. So a part is whole by
itself, no rank waits for another, and a rank reads only the parts of which it needs something: its own
one, as long as the number of ranks stays. Plain values lie beside the tensors in the form of
``trial.save_checkpoint``. Nothing that is read can name code to run.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_local_load_plan,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.tensor import DTensor

from tuner import checkpoint
from tuner.assignment import Shard
from tuner.checkpoint_state import decode_state, encode_state
from tuner.errors import BadCheckpoint
from tuner.trial import Trial

__all__ = ["load_sharded", "save_sharded"]

_INDEX, _TENSORS, _VALUES = "index.json", "__0_0.distcp", "values.pt"
_FORM = "tuner-sharded-1"
_MOST = 2**28  # bytes of an index


def save_sharded(trial: Trial, state: Mapping[str, Any], step: int) -> None:
    """Save a state whose tensors may be shards; all ranks call it. Durable and recorded on return.

    A ``DTensor`` is one tensor of all ranks: each saves the shard that it holds. Everything else, a
    plain tensor too, is this rank's own.

    Args:
        state: dicts with text or whole numbers as keys; in them tensors, DTensors, and what
            ``trial.save_checkpoint`` takes.
        step: of the training; a retry goes on after it.

    Raises:
        BadCheckpoint: names the key of what cannot be saved.
        CheckpointNotSaved, Interrupted: as from ``trial.save_checkpoint``.

    Example:
        >>> def objective(trial):
        ...     state = {"model": torch.nn.Linear(2, 1).state_dict(), "epoch": 0}
        ...     done = tuner.torch.load_sharded(trial, state)  # None on a first try
        ...     for epoch in range(0 if done is None else done + 1, 2):
        ...         tuner.torch.save_sharded(trial, {**state, "epoch": epoch}, epoch)
        ...     return 0.0
        >>> study = tuner.create_study("sharded", storage="sqlite:///tuner.db")
        >>> study = tuner.optimize(study, objective, n_trials=1, executor="inline")
        >>> state = {"model": torch.nn.Linear(2, 1).state_dict()}
        >>> tuner.torch.load_sharded(tuner.best_checkpoint(study), state), state["epoch"]
        (1, 1)
    """
    leaves = dict(_leaves(state))
    tensors = {name: value for name, value in leaves.items() if isinstance(value, torch.Tensor)}
    for name, one in tensors.items():
        if one.layout is not torch.strided or one.is_meta:  # else the file system would get the blame
            text = f"{_shown(name)} is a {one.layout} tensor on {one.device}"
            raise BadCheckpoint(f"{text}; give a dense one that has its values")
    values = encode_state({name: value for name, value in leaves.items() if name not in tensors})
    with trial.checkpoint_dir(step) as folder, checkpoint.saving(str(folder)):
        torch.save(values, folder / _VALUES)
        (folder / _INDEX).write_text(json.dumps(_write(tensors, folder)))


def load_sharded(source: Trial | checkpoint.Checkpoint, state: MutableMapping[str, Any]) -> int | None:
    """Fill a state in place from the newest checkpoint of an earlier attempt.

    The number of ranks may have changed since, and with it what is a shard: a DTensor is filled from
    one that was cut otherwise, or from a whole tensor, and a whole tensor from shards. What is a
    rank's own comes from rank ``r`` modulo the number of ranks that saved.

    Args:
        source: the trial; or what ``tuner.best_checkpoint`` gave, to be read whole by one process.
        state: tensors in the structure, shapes and types of what was saved; they are written to.
            Plain values are put in place of what is there, or added.

    Returns:
        The step that was saved; None on a first try, and the state is as it was.

    Raises:
        BadCheckpoint: damaged, not made by :func:`save_sharded`, or of another structure (the key is
            named). The state may be filled in part.

    Example:
        >>> def objective(trial):
        ...     state = {"model": torch.nn.Linear(2, 1).state_dict(), "epoch": 0}
        ...     done = tuner.torch.load_sharded(trial, state)  # None on a first try
        ...     for epoch in range(0 if done is None else done + 1, 2):
        ...         tuner.torch.save_sharded(trial, {**state, "epoch": epoch}, epoch)
        ...     return 0.0
        >>> study = tuner.create_study("sharded-2", storage="sqlite:///tuner.db")
        >>> study = tuner.optimize(study, objective, n_trials=1, executor="inline")
        >>> state = {"model": torch.nn.Linear(2, 1).state_dict()}
        >>> tuner.torch.load_sharded(tuner.best_checkpoint(study), state), state["epoch"]
        (1, 1)
    """
    found = source if isinstance(source, checkpoint.Checkpoint) else source.load_checkpoint()
    if found is None:
        return None
    own = 0 if isinstance(source, checkpoint.Checkpoint) else source.rank % len(found.parts)
    tensors = {name: one for name, one in _leaves(state) if isinstance(one, torch.Tensor)}
    values = _read(tensors, found.parts[own:] + found.parts[:own])
    for name, value in values.items():
        *path, last = json.loads(name)
        try:
            inner: Any = functools.reduce(lambda outer, key: outer.setdefault(key, {}), path, state)
            inner[last] = value
        except (AttributeError, TypeError):
            text = f"{_shown(name)} was saved in a dict, where the state has something else; give a dict"
            raise BadCheckpoint(text) from None
    return found.step


def _leaves(state: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """What is in the dicts, each by its path as JSON; an empty dict is a leaf itself."""
    for key, value in state.items():
        if type(key) not in (str, int):
            raise BadCheckpoint(f"the state has the key {key!r}; give text or whole numbers as keys")
        here = (*path, key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, here)
        else:
            yield json.dumps(here), value


def _write(tensors: Mapping[str, torch.Tensor], folder: Path) -> dict[str, Any]:
    """Write this rank's shards, and return the index of the file that they are in."""
    planner = DefaultSavePlanner(flatten_state_dict=False)
    planner.set_up_planner(dict(tensors))
    writer = FileSystemWriter(folder, sync_files=False)  # the trial syncs all files of the folder
    plan = writer.prepare_global_plan([writer.prepare_local_plan(planner.create_local_plan())])[0]
    chunks = {item.index: item.tensor_data.chunk for item in plan.items if item.tensor_data is not None}
    index: dict[str, Any] = {}
    for name, tensor in tensors.items():
        index[name] = {"dtype": str(tensor.dtype), "size": list(tensor.shape), "chunks": []}
    for result in writer.write_data(plan, planner).wait():
        chunk, place = chunks[result.index], result.storage_data
        where = {"offset": list(chunk.offsets), "size": list(chunk.sizes), "at": place.offset}
        index[result.index.fqn]["chunks"].append({**where, "length": place.length})
    return {"form": _FORM, "tensors": index}


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a chunk's bytes lie; DCP's reader looks at these names."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: tuple[str, ...] = ()


def _read(tensors: dict[str, torch.Tensor], parts: tuple[Shard, ...]) -> dict[str, Any]:
    """Fill the tensors from the first parts that suffice; the plain values of the first part."""
    known: dict[str, TensorStorageMetadata] = {}
    places: dict[MetadataIndex, _Place] = {}
    wanted = dict(tensors)
    values: dict[str, Any] = {}
    for number, part in enumerate(parts):
        folder = checkpoint.load(part)  # verified
        if not isinstance(folder, Path):
            raise BadCheckpoint(f"{part.path} was not made by save_sharded; use trial.load_checkpoint")
        try:
            if number == 0:
                values = decode_state(torch.load(folder / _VALUES, map_location="cpu", weights_only=True))
            _add(folder, wanted, known, places)
        except Exception as error:
            raise _foreign(part, error) from error
        for name in [name for name, tensor in wanted.items() if name in known]:
            _check_same(name, known[name], tensors[name])
            if _covered(name, known[name], tensors[name]):
                del wanted[name]
        if not wanted:
            break
    if wanted:
        raise BadCheckpoint(f"the checkpoint does not have all of {_shown(next(iter(wanted)))}")
    metadata = Metadata(state_dict_metadata=dict(known), storage_data=places)
    planner = DefaultLoadPlanner(flatten_state_dict=False)
    planner.set_up_planner(dict(tensors), metadata)
    reader = FileSystemReader("/")  # the places are absolute
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    try:
        reader.read_data(planner.create_local_plan(), planner).wait()
    except Exception as error:
        raise _foreign(parts[0], error) from error
    return values


def _add(
    folder: Path,
    wanted: Mapping[str, torch.Tensor],
    known: dict[str, TensorStorageMetadata],
    places: dict[MetadataIndex, _Place],
) -> None:
    """Take in from a part's index the chunks of what is still wanted."""
    with open(folder / _INDEX, "rb") as file:
        index = json.loads(file.read(_MOST))
    if index["form"] != _FORM:
        raise ValueError(f"its form is {index['form']!r}")
    for name, entry in index["tensors"].items():
        if name not in wanted:
            continue
        dtype = getattr(torch, str(entry["dtype"]).removeprefix("torch."))
        one = known.setdefault(
            name,
            TensorStorageMetadata(
                properties=TensorProperties(dtype=dtype), size=torch.Size(entry["size"]), chunks=[]
            ),
        )
        for chunk in entry["chunks"]:
            offset = torch.Size(chunk["offset"])
            place = _Place(
                relative_path=str(folder / _TENSORS), offset=int(chunk["at"]), length=int(chunk["length"])
            )
            if places.setdefault(MetadataIndex(name, offset), place) is place:
                one.chunks.append(ChunkStorageMetadata(offsets=offset, sizes=torch.Size(chunk["size"])))


def _check_same(name: str, saved: TensorStorageMetadata, tensor: torch.Tensor) -> None:
    if saved.size != tensor.shape or saved.properties.dtype != tensor.dtype:
        raise BadCheckpoint(
            f"{_shown(name)} is {tensor.dtype} of shape {list(tensor.shape)}, "
            f"but {saved.properties.dtype} of shape {list(saved.size)} was saved"
        )


def _covered(name: str, saved: TensorStorageMetadata, tensor: torch.Tensor) -> bool:
    """Whether the known chunks hold every element that this rank has of the tensor."""
    plan: LoadPlan = create_default_local_load_plan(
        {name: tensor}, Metadata(state_dict_metadata={name: saved})
    )
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return sum(math.prod(item.lengths) for item in plan.items) >= local.numel()


def _shown(name: str) -> str:
    return "/".join(map(str, json.loads(name)))


def _foreign(part: Shard, error: Exception) -> BadCheckpoint:
    line = (str(error).strip().splitlines() or [""])[0]
    text = f"{part.path} is no checkpoint of save_sharded ({type(error).__name__}: {line})"
    return BadCheckpoint(f"{text}; nothing in it was run")
