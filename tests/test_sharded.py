"""Sharded checkpoints: any number of ranks goes on from any other; what is changed or foreign is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import RankTrial, run_script, same
from tuner import checkpoint
from tuner.assignment import Shard
from tuner.checkpoint import Checkpoint
from tuner.errors import BadCheckpoint
from tuner.torch import load_sharded, save_sharded

# The weight has five rows and the bias one: no number of ranks divides them, and ranks are left empty.
RANKS = """
import os, sys
from pathlib import Path
import torch, torch._dynamo, torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from tests.ranks import RankTrial
from tests.test_sharded import SIZES, full
from tuner import checkpoint
from tuner.torch import load_sharded, save_sharded
torch.set_num_threads(1)
HOME = Path(sys.argv[1])

def state(rank, world_size, value):
    mesh = dist.device_mesh.init_device_mesh("cpu", (world_size,))
    def cut(name):
        place = Replicate() if name in ("same", "scale") else Shard(0)
        return distribute_tensor(full(name) * value, mesh, [place])
    model = {name: cut(name) for name in SIZES}
    rng = torch.tensor([rank]) * value
    return {"model": model, "rng": rng, "epoch": 3 * value, "name": f"rank {rank}" * value}

def run(world_size, rank, save, starts):
    file = f"file://{HOME}/group-{save or 'load'}-{world_size}"
    dist.init_process_group("gloo", init_method=file, rank=rank, world_size=world_size)
    if save:
        trial = RankTrial({}, HOME / save, rank=rank, world_size=world_size)
        save_sharded(trial, state(rank, world_size, 1), 4)
        torch.save(trial.saved[4], HOME / f"{save}-{rank}")
    for start in starts:
        count = int(start[-1])
        parts = tuple(torch.load(HOME / f"{start}-{part}", weights_only=False) for part in range(count))
        found = state(rank, world_size, 0)
        trial = RankTrial({}, HOME, rank=rank, world_size=world_size, start=(4, parts))
        assert load_sharded(trial, found) == 4
        model = {name: value.full_tensor() for name, value in found["model"].items()}
        torch.save({**found, "model": model}, HOME / f"loaded-{start}-{world_size}-{rank}")
    dist.barrier()
    dist.destroy_process_group()

def group(world_size, save, starts):
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            run(world_size, rank, save, starts)
            os._exit(0)
        children.append(child)
    assert not any([os.waitpid(child, 0)[1] for child in children])

one = RankTrial({}, HOME / "by-1")  # without a group, and its tensors are plain
model = {name: full(name) for name in SIZES}
whole = {"model": model, "rng": torch.tensor([0]), "epoch": 3, "name": "rank 0"}
save_sharded(one, whole, 4)
torch.save(one.saved[4], HOME / "by-1-0")
group(2, "by-2", ["by-1"])
group(3, "by-3", ["by-2"])
group(2, None, ["by-2", "by-3"])
"""

SIZES = {"weight": [5, 3], "bias": [1], "scale": [], "same": [2, 2]}


def full(name: str) -> torch.Tensor:
    """A tensor of which no two elements are equal."""
    size = SIZES[name]
    count = torch.Size(size).numel()
    return torch.arange(1, count + 1, dtype=torch.float32).reshape(size) / 7


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the groups above saved and loaded."""
    folder = tmp_path_factory.mktemp("sharded")
    script = folder / "script.py"
    script.write_text(RANKS)
    run_script(script, str(folder))
    return folder


def parts_of(home: Path, name: str) -> tuple[Shard, ...]:
    return tuple(torch.load(home / f"{name}-{rank}", weights_only=False) for rank in range(int(name[-1])))


def empty() -> dict[str, Any]:
    model = {name: torch.zeros(size) for name, size in SIZES.items()}
    return {"model": model, "rng": torch.tensor([9]), "epoch": 0}


def resumed(home: Path, parts: tuple[Shard, ...], rank: int = 0) -> RankTrial:
    return RankTrial({}, home, rank=rank, start=(4, parts))


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(1, 2), (2, 2), (2, 3), (3, 2)])
def test_any_number_of_ranks_goes_on_from_any_other(saved_by: int, loaded_by: int, home: Path) -> None:
    for rank in range(loaded_by):
        found = torch.load(home / f"loaded-by-{saved_by}-{loaded_by}-{rank}", weights_only=False)
        assert same(found["model"], {name: full(name) for name in SIZES})
        own = rank % saved_by
        assert (found["rng"].item(), found["epoch"], found["name"]) == (own, 3, f"rank {own}")


@pytest.mark.parametrize("saved_by", [1, 2, 3])
def test_one_process_without_a_group_goes_on_from_any_number(saved_by: int, home: Path) -> None:
    state = empty()
    place = state["model"]["weight"]
    assert load_sharded(resumed(home, parts_of(home, f"by-{saved_by}")), state) == 4
    assert same(state["model"], {name: full(name) for name in SIZES})
    assert (state["rng"].item(), state["epoch"], state["name"]) == (0, 3, "rank 0")
    assert state["model"]["weight"] is place


def test_one_process_reads_the_best_checkpoint_whole(home: Path) -> None:
    best, state = Checkpoint(step=4, state={}, parts=parts_of(home, "by-2")), empty()
    assert load_sharded(best, state) == 4
    assert same(state["model"], {name: full(name) for name in SIZES})


def test_a_rank_reads_no_part_of_which_it_needs_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of(home, "by-3")
    opened = []
    load: Callable[[Shard], Any] = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda shard: opened.append(shard.rank) or load(shard))
    trial = resumed(home, parts, rank=1)
    own = {"rng": torch.tensor([9])}
    load_sharded(trial, own)
    assert own["rng"].item() == 1
    assert set(opened) == {1}


def test_a_first_try_leaves_the_state_alone(tmp_path: Path) -> None:
    state = empty()
    assert load_sharded(RankTrial({}, tmp_path), state) is None
    assert same(state, empty())


@pytest.mark.parametrize("file", ["index.json", "__0_0.distcp", "values.pt"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_changed_part_of_any_rank_is_refused(file: str, rank: int, home: Path, tmp_path: Path) -> None:
    parts = copied(parts_of(home, "by-2"), tmp_path)
    where = Path(parts[rank].path) / file
    data = bytearray(where.read_bytes())
    data[len(data) // 2] ^= 1
    where.write_bytes(data)
    with pytest.raises(BadCheckpoint, match="SHA-256"):
        load_sharded(resumed(home, parts), empty())


def copied(parts: tuple[Shard, ...], folder: Path) -> tuple[Shard, ...]:
    for part in parts:
        shutil.copytree(part.path, folder / f"{part.rank}.dir")
    return digested(parts, folder)


def digested(parts: tuple[Shard, ...], folder: Path) -> tuple[Shard, ...]:
    return tuple(checkpoint.folder_shard(str(folder / f"{part.rank}.dir"), part.rank) for part in parts)


class Evil:
    """Says that it was run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("file", ["index.json", "__0_0.distcp", "values.pt"])
def test_a_pickle_is_never_run_whatever_its_digest_says(file: str, home: Path, tmp_path: Path) -> None:
    parts = copied(parts_of(home, "by-1"), tmp_path)
    where, mark = tmp_path / "0.dir" / file, tmp_path / "ran"
    where.write_bytes(pickle.dumps(Evil(mark), protocol=2))
    if file == "__0_0.distcp":  # as long as torch's own form, which is a zip with a pickle in it
        torch.save(Evil(mark), where)
        index = json.loads((tmp_path / "0.dir" / "index.json").read_text())
        for tensor in index["tensors"].values():
            tensor["chunks"][0].update(at=0, length=where.stat().st_size)
        (tmp_path / "0.dir" / "index.json").write_text(json.dumps(index))
    (tmp_path / "0.dir" / ".metadata").write_bytes(pickle.dumps(Evil(mark)))  # where DCP has its own
    with pytest.raises(BadCheckpoint, match="nothing in it was run"):
        load_sharded(resumed(home, digested(parts, tmp_path)), empty())
    assert not mark.exists()


def test_an_index_that_names_another_place_reads_nothing_beyond_its_part(home: Path, tmp_path: Path) -> None:
    parts = copied(parts_of(home, "by-1"), tmp_path)
    where = tmp_path / "0.dir" / "index.json"
    index = json.loads(where.read_text())
    index["tensors"]['["model", "weight"]']["chunks"][0]["at"] = 10**9
    where.write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match="nothing in it was run"):
        load_sharded(resumed(home, digested(parts, tmp_path)), empty())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weight": torch.zeros(4, 3)}, r"model/weight is torch.float32 of shape \[4, 3\], but .*\[5, 3\]"),
        ({"weight": torch.zeros(5, 3, dtype=torch.float64)}, "model/weight is torch.float64"),
        ({"other": torch.zeros(2)}, "does not have all of model/other"),
    ],
)
def test_another_structure_is_refused_by_its_key(change: dict[str, Any], told: str, home: Path) -> None:
    state = empty()
    state["model"].update(change)
    with pytest.raises(BadCheckpoint, match=told):
        load_sharded(resumed(home, parts_of(home, "by-2")), state)


def test_a_missing_part_is_told(home: Path) -> None:
    with pytest.raises(BadCheckpoint, match="does not have all of model/weight"):
        load_sharded(resumed(home, parts_of(home, "by-2")[:1]), empty())


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"a": {"b": object()}}, "object"),
        ({1.5: torch.ones(1)}, "the key 1.5"),
        ({"a": {"b": torch.ones(2).to_sparse()}}, r"a/b is a torch\.sparse_coo tensor"),
        ({"a": torch.ones(2, device="meta")}, "a is a .* tensor on meta"),
    ],
)
def test_what_cannot_be_saved_is_named(state: dict[Any, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=told):
        save_sharded(RankTrial({}, tmp_path), state, 1)


def test_a_checkpoint_of_the_other_kind_is_refused_with_what_reads_it(tmp_path: Path) -> None:
    trial = RankTrial({}, tmp_path)
    trial.save_checkpoint({"epoch": 1}, 4)
    with pytest.raises(BadCheckpoint, match=r"trial\.load_checkpoint"):
        load_sharded(resumed(tmp_path, (trial.saved[4],)), empty())


def test_a_plain_value_has_its_dict_or_is_named(tmp_path: Path) -> None:
    trial = RankTrial({}, tmp_path)
    save_sharded(trial, {"progress": {"epoch": 3}}, 4)
    made: dict[str, Any] = {}
    load_sharded(resumed(tmp_path, (trial.saved[4],)), made)
    assert made == {"progress": {"epoch": 3}}
    with pytest.raises(BadCheckpoint, match="progress/epoch"):
        load_sharded(resumed(tmp_path, (trial.saved[4],)), {"progress": 5})
