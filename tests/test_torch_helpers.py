"""tuner.torch: every sample once, the gradient of one process, and what compression saves."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

import tuner
from tuner.torch import Accumulation, DistributedBatches, Loader, prepare, traffic

CPU = torch.device("cpu")


@dataclass(kw_only=True)
class Place:
    rank: int = 0
    world_size: int = 1
    seed: int = 3
    device: torch.device = CPU


def ranks(world_size: int) -> list[Place]:
    return [Place(rank=rank, world_size=world_size) for rank in range(world_size)]


# ------------------------------------------------------------------- batches


@given(
    size=st.integers(0, 60),
    batch_size=st.integers(1, 17),
    parts=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), max_size=5),
    last=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_each_sample_of_an_epoch_is_seen_once_over_changes_of_the_world(
    size: int, batch_size: int, parts: list[tuple[int, int]], last: int, epoch: int
) -> None:
    """Attempts of other numbers of ranks, each of which trains some batches and saves its state."""
    state: dict[str, int] = {"epoch": epoch, "seen": 0, "seed": 3, "size": size}
    seen: list[int] = []
    for world_size, batches in [*parts, (last, 10**6)]:
        states = []
        for place in ranks(world_size):
            sampler = DistributedBatches(size, place, batch_size)
            sampler.load_state_dict(state)
            mine = list(sampler)
            assert len(mine) == len(sampler)  # the same on all ranks: no collective waits in vain
            for batch in mine[:batches]:
                seen += batch
                sampler.consumed()
            states.append(sampler.state_dict())
        assert states == [states[0]] * world_size
        state = states[0]
    assert sorted(seen) == list(range(size))
    assert state["seen"] == size


def test_the_rows_of_a_batch_are_the_same_whatever_the_ranks() -> None:
    def batches(world_size: int, seed: int = 3) -> list[set[int]]:
        shares = [list(DistributedBatches(50, place, 8, seed=seed)) for place in ranks(world_size)]
        assert all(max(map(len, parts)) - min(map(len, parts)) <= 1 for parts in zip(*shares, strict=True))
        return [set().union(*parts) for parts in zip(*shares, strict=True)]

    assert batches(1) == batches(3) == batches(4)
    assert batches(1, seed=4) != batches(1)


def test_epochs_differ_and_drop_last_leaves_a_part_out() -> None:
    sampler = DistributedBatches(10, Place(), 4, drop_last=True)
    first = list(sampler)
    assert [len(batch) for batch in first] == [4, 4]
    sampler.next_epoch()
    assert list(sampler) != first
    sampler.consumed(5)
    assert list(sampler) == []
    assert sampler.state_dict()["seen"] == 8


def test_a_state_of_other_data_is_refused() -> None:
    state = DistributedBatches(10, Place(), 4).state_dict()
    with pytest.raises(tuner.BadInput, match="11 samples, but the checkpoint is of 10"):
        DistributedBatches(11, Place(), 4).load_state_dict(state)
    with pytest.raises(tuner.BadInput, match="batch_size=0"):
        DistributedBatches(10, Place(), 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_counts_what_the_loop_got_and_not_what_workers_fetched(workers: int) -> None:
    data = TensorDataset(torch.arange(40))
    loader = Loader(data, Place(), 4, num_workers=workers)
    seen = []
    for (rows,) in loader:
        seen += rows.tolist()
        if len(seen) == 12:
            state = loader.state_dict()
            break
    assert state["seen"] == 12
    for world_size in (1, 3):
        rest = list(seen)
        for place in ranks(world_size):
            again = Loader(data, place, 4, num_workers=workers if world_size == 1 else 0)
            again.load_state_dict(state)
            assert len(again) == 7
            for (rows,) in again:
                rest += rows.tolist()
            assert (again.epoch, again.state_dict()["seen"]) == (1, 0)
        assert sorted(rest) == list(range(40))


def test_after_a_break_the_epoch_goes_on_and_then_the_next_begins() -> None:
    loader = Loader(TensorDataset(torch.arange(10)), Place(), 4)
    first = next(iter(loader))[0].tolist()
    rest = [number for (rows,) in loader for number in rows.tolist()]
    assert sorted(first + rest) == list(range(10))
    assert loader.epoch == 1
    assert sum(len(rows) for (rows,) in loader) == 10


def test_a_rank_without_a_share_gets_an_empty_batch_of_the_right_shape() -> None:
    data = TensorDataset(torch.zeros(9, 3), torch.arange(9))
    batches = list(Loader(data, Place(rank=2, world_size=4), 8))
    assert [batch[0].shape for batch in batches] == [(2, 3), (0, 3)]
    assert batches[1][1].dtype == torch.int64


# ------------------------------------------------------------------- accumulation, on one rank


def test_micro_batches_have_the_gradient_of_the_whole_batch() -> None:
    x, y = data_of(10)
    whole, parts = network(), network()
    losses(whole, x, y).mean().backward()
    total = sum(
        micro.backward(losses(parts, *micro.tensors)) for micro in Accumulation(parts, 4).split(x, y, of=10)
    )
    assert total == pytest.approx(losses(whole, x, y).mean().item(), rel=1e-5)
    assert_same_gradients(gradients(parts), gradients(whole))


def test_a_share_that_cannot_be_is_refused() -> None:
    x, y = data_of(6)
    accumulation = Accumulation(network(), 4)
    assert [micro.rows for micro in accumulation.split(x, y, of=9)] == [4, 2]
    assert [micro.rows for micro in accumulation.split(x[:0], of=9)] == [0]
    with pytest.raises(tuner.BadInput, match="of=5 rows over all ranks"):
        next(accumulation.split(x, of=5))
    with pytest.raises(tuner.BadInput, match=r"\[5, 6\] rows"):
        next(accumulation.split(x, y[:5], of=6))
    with pytest.raises(tuner.BadInput, match="micro_batch=0"):
        Accumulation(network(), 0)


# ------------------------------------------------------------------- prepare, on one rank


def test_on_one_rank_a_model_is_only_moved() -> None:
    model = network()
    for strategy in ("ddp", "fsdp", None):
        assert prepare(model, Place(), strategy) is model
    moved = prepare(network(), Place(device=torch.device("meta")))
    assert {parameter.device.type for parameter in moved.parameters()} == {"meta"}
    with pytest.raises(tuner.BadInput, match="counts no bytes"):
        traffic(model)
    assert traffic(prepare(model, Place(), compression="fp16")).bytes_plain == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "dpp"}, "strategy='dpp'"),
        ({"compression": "zip"}, "compression='zip'"),
        ({"strategy": "fsdp", "compression": "fp16"}, "needs strategy"),
    ],
)
def test_what_cannot_be_prepared_is_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(tuner.BadInput, match=message):
        prepare(network(), Place(), **arguments)


def test_the_package_is_there_after_a_plain_import_and_torch_only_when_it_is_used() -> None:
    code = "import sys, tuner; before = 'torch' in sys.modules; print(before, tuner.torch.prepare.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "prepare"]
    assert "torch" not in tuner.__all__  # a star import leaves PyTorch alone


# ------------------------------------------------------------------- several ranks


def data_of(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(rows, 6, generator=generator), torch.randint(0, 3, (rows,), generator=generator)


def network() -> torch.nn.Sequential:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


def losses(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(x), y, reduction="none")


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    found = [parameter.grad for parameter in model.parameters()]
    return [grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in found]


def assert_same_gradients(some: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


SIZE, BATCH = 21, 8  # the last logical batch has 5 rows: of three ranks one has two micro-batches of 1

# Forked from a fresh interpreter, as a trial's ranks are.
RANKS = """
import os, sys, json
from pathlib import Path
import torch, torch._dynamo, torch.distributed as dist
torch.set_num_threads(1)
import test_torch_helpers as t
from tests.benchmarks import compression

folder = Path(sys.argv[1])

def group(name, world_size, work):
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            dist.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=rank,
                                    world_size=world_size)
            result = work(t.Place(rank=rank, world_size=world_size))
            torch.save(result, folder / f"{name}-{rank}.pt")
            dist.barrier()
            dist.destroy_process_group()
            os._exit(0)
        children.append(child)
    assert not any([os.waitpid(child, 0)[1] for child in children])

def epoch(strategy):
    def work(place):
        model = t.prepare(t.network(), place, strategy)
        compiled = strategy == "fsdp" or place.world_size == 2  # it takes seconds on every rank
        accumulation = t.Accumulation(torch.compile(model) if compiled else model, 1)
        loader = t.Loader(t.TensorDataset(*t.data_of(t.SIZE)), place, t.BATCH)
        found = []
        for x, y in loader:
            model.zero_grad()
            for micro in accumulation.split(x, y, of=loader.rows):
                micro.backward(t.losses(model, *micro.tensors))
            found.append(t.gradients(model))
        return found
    return work

for ranks in (2, 3, 6):
    group(f"ddp-{ranks}", ranks, epoch("ddp"))
group("fsdp-3", 3, epoch("fsdp"))
for kind in ("none", "fp16", "bf16", "powersgd"):
    group(kind, 2, lambda place: compression.train(place, kind, epochs=4))
"""


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what the ranks of the groups above returned."""
    folder = tmp_path_factory.mktemp("groups")
    (folder / "ranks.py").write_text(RANKS)
    root = Path(__file__).parent
    path = os.pathsep.join([str(root), str(root.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, folder / "ranks.py", folder],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def told(folder: Path, name: str) -> Any:
    return torch.load(folder / f"{name}.pt", weights_only=False)


@pytest.mark.parametrize(("strategy", "world_size"), [("ddp", 2), ("ddp", 3), ("ddp", 6), ("fsdp", 3)])
def test_any_number_of_ranks_has_the_gradient_of_one_process(
    groups: Path, strategy: str, world_size: int
) -> None:
    """Six ranks: the last batch has five rows, and one rank none."""
    model, data = network(), data_of(SIZE)
    for step, batch in enumerate(DistributedBatches(SIZE, Place(), BATCH)):
        model.zero_grad()
        losses(model, data[0][batch], data[1][batch]).mean().backward()
        for rank in range(world_size):
            assert_same_gradients(told(groups, f"{strategy}-{world_size}-{rank}")[step], gradients(model))


def test_compression_sends_fewer_bytes_and_learns_as_well(groups: Path) -> None:
    figures = {kind: told(groups, f"{kind}-0") for kind in ("none", "fp16", "bf16", "powersgd")}
    plain = figures["none"]
    assert plain.sent == plain.plain == 4 * plain.parameters * plain.steps
    for kind in ("fp16", "bf16"):
        assert figures[kind].plain == plain.plain
        assert figures[kind].sent == plain.plain // 2
    assert figures["powersgd"].sent < plain.plain / 2
    for figure in figures.values():
        assert figure.accuracy > 0.85
