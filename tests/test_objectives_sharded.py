"""Fashion and charlm: they learn, and an interrupted training is the uninterrupted one to the last bit."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import torch

import tuner
from objectives import charlm, fashion
from tests.local_cluster import local_cluster
from tests.ranks import RankTrial, run_script, same

FASHION = {"lr": 0.1, "channels": 8, "dropout": 0.2, "batch_size": 64}
CHARLM = {"lr": 0.01, "width": 32, "layers": 2}
BOTH = pytest.mark.parametrize(
    ("module", "params"), [(fashion, FASHION), (charlm, CHARLM)], ids=["fashion", "charlm"]
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three short epochs of the digits, in one thread as in a trial with one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("FASHION_MNIST", "/nowhere")
    for module in (fashion, charlm):
        monkeypatch.setattr(module, "EPOCHS", 3)
    monkeypatch.setattr(charlm, "STEPS", 4)
    fashion.load_images.cache_clear()
    yield
    fashion.load_images.cache_clear()
    torch.set_num_threads(threads)


def state_of(trial: RankTrial) -> Any:
    """What a trial saved last: the state itself, or the tensors and values of its folder."""
    state = trial.last_state()
    if not isinstance(state, Path):
        return state
    return {file.name: file.read_bytes() for file in state.iterdir()}


# ------------------------------------------------------------------- one rank


@BOTH
@pytest.mark.parametrize("stop_at", [1, 2])
def test_a_resumed_training_is_the_uninterrupted_one_to_the_last_bit(
    module: ModuleType, params: dict[str, Any], stop_at: int, tmp_path: Path
) -> None:
    whole = RankTrial(params, tmp_path / "whole")
    value = module.objective(whole)
    first = RankTrial(params, tmp_path / "parts", stop_at=stop_at)
    module.objective(first)
    assert max(first.saved) == max(first.reports) == stop_at
    torch.rand(17)  # whatever the next process has drawn before
    second = RankTrial(params, tmp_path / "parts", start=first.last())
    assert module.objective(second) == value
    assert {**first.reports, **second.reports} == whole.reports
    assert min(second.reports) == stop_at + 1
    assert {**first.metrics, **second.metrics} == whole.metrics
    assert same(state_of(second), state_of(whole))


@BOTH
def test_it_leaves_when_it_is_pruned_but_not_after_its_last_epoch(
    module: ModuleType, params: dict[str, Any], tmp_path: Path
) -> None:
    early = RankTrial(params, tmp_path / "early", prune_at=1)
    with pytest.raises(optuna.TrialPruned):
        module.objective(early)
    assert list(early.reports) == [1]
    module.objective(RankTrial(params, tmp_path / "last", prune_at=3))


@BOTH
def test_what_is_asked_after_the_last_epoch_gives_the_value_again(
    module: ModuleType, params: dict[str, Any], tmp_path: Path
) -> None:
    whole = RankTrial(params, tmp_path)
    value = module.objective(whole)
    assert module.objective(RankTrial(params, tmp_path, start=whole.last())) == value


def test_fashion_learns_the_digits(tmp_path: Path) -> None:
    trial = RankTrial(FASHION, tmp_path)
    assert fashion.objective(trial) > 0.85
    assert fashion.objective(RankTrial({**FASHION, "lr": 0.001}, tmp_path / "slow")) < 0.7


def test_fashion_reads_the_files_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(name: str, rows: torch.Tensor) -> None:
        sizes = b"".join(size.to_bytes(4, "big") for size in rows.shape)
        data = bytes([0, 0, 8, rows.dim()]) + sizes + bytes(rows.flatten().tolist())
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(data))

    images = (torch.arange(5 * 28 * 28) % 256).reshape(5, 28, 28)
    write("images-idx3", images)
    write("labels-idx1", torch.tensor([3, 1, 4, 1, 5]))
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path))
    monkeypatch.setattr(fashion, "ROWS", {"train": 3, "validation": 2})
    train, validation = fashion.load_images("train"), fashion.load_images("validation")
    assert train.labels.tolist() == [3, 1, 4]
    assert validation.labels.tolist() == [1, 5]
    assert torch.equal(torch.cat([train.images, validation.images]), images.unsqueeze(1) / 255)


def test_the_forward_pass_of_a_cpu_is_exact() -> None:
    with fashion.autocast(torch.device("cpu")):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype is torch.float32


def test_charlm_learns_more_than_how_often_each_letter_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charlm, "STEPS", 40)
    text = charlm.encode(charlm.generate("validation"))
    share = torch.bincount(text) / len(text)
    entropy = -(share[share > 0] * share[share > 0].log()).sum().item()
    assert charlm.objective(RankTrial(CHARLM, tmp_path)) < 0.8 * entropy


def test_the_optimizer_of_charlm_counts_the_batches_that_were_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr(charlm, "save_sharded", lambda trial, state, step: saved.append(state))
    charlm.objective(RankTrial(CHARLM, tmp_path))
    moments = [one["optimizer"]["state"] for one in saved]
    assert {one["step"].item() for one in moments[-1].values()} == {3 * charlm.STEPS}


def test_the_grammar_is_kept_and_its_text_is_always_the_same() -> None:
    train, validation = charlm.generate("train"), charlm.generate("validation")
    assert train.startswith("the teachers that find the teachers sing with the birds. the kids dream near a ")
    assert set(train) <= set(charlm.LETTERS)
    seen = set(train.split(". "))
    new = [one for one in validation.split(". ") if one not in seen]
    assert len(new) > 100
    assert charlm.generate.__wrapped__("train") == train


# ------------------------------------------------------------------- several ranks

RANKS = """
import json, os, sys
from pathlib import Path
import torch, torch._dynamo, torch.distributed as dist
from tests.ranks import RankTrial
from tests.test_objectives_sharded import CHARLM, FASHION, state_of
from objectives import charlm, fashion
torch.set_num_threads(1)
fashion.EPOCHS = charlm.EPOCHS = 3
charlm.STEPS = 4
HOME = Path(sys.argv[1])

def run(name, rank, module, params, **options):
    dist.init_process_group("gloo", init_method=f"file://{HOME / name}.group", rank=rank, world_size=2)
    trial = RankTrial(params, HOME / name, rank=rank, world_size=2, **options)
    end = module.objective(trial)
    dist.barrier()
    dist.destroy_process_group()
    told = {"end": end, "reports": trial.reports, "metrics": trial.metrics}
    torch.save({**told, "state": state_of(trial), "last": trial.last()}, HOME / f"{name}-{rank}")

def group(name, *work, after=None, **options):
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            if after:
                told = [torch.load(HOME / f"{after}-{one}", weights_only=False)["last"] for one in range(2)]
                options["start"] = told[0][0], tuple(part for _, part in told)
            run(name, rank, *work, **options)
            os._exit(0)
        children.append(child)
    assert not any([os.waitpid(child, 0)[1] for child in children])

for module, params in ((fashion, FASHION), (charlm, CHARLM)):
    name = module.__name__.rpartition(".")[2]
    group(f"{name}-whole", module, params)
    group(f"{name}-first", module, params, stop_at=2)
    group(f"{name}-second", module, params, after=f"{name}-first")
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """What both ranks of a group above said and saved, by its name."""
    folder = tmp_path_factory.mktemp("groups")
    script = folder / "script.py"
    script.write_text(RANKS)
    run_script(script, str(folder))
    return lambda name: [torch.load(folder / f"{name}-{rank}", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", ["fashion", "charlm"])
def test_two_ranks_resume_to_the_last_bit(name: str, told: Callable[[str], list[dict[str, Any]]]) -> None:
    groups = [told(f"{name}-{part}") for part in ("whole", "first", "second")]
    for whole, first, second in zip(*groups, strict=True):
        assert list(first["reports"]) == [1, 2]
        assert second["end"] == whole["end"]
        assert {**first["reports"], **second["reports"]} == whole["reports"]
        assert {**first["metrics"], **second["metrics"]} == whole["metrics"]
        assert same(second["state"], whole["state"])


def test_each_rank_of_charlm_saves_its_shards_only(told: Callable[[str], list[dict[str, Any]]]) -> None:
    name = '["model", "blocks.0.to_heads.weight"]'
    states = [rank["state"] for rank in told("charlm-whole")]
    chunks = [json.loads(state["index.json"])["tensors"][name]["chunks"] for state in states]
    assert [[chunk["size"] for chunk in part] for part in chunks] == [[[48, 32]], [[48, 32]]]
    assert [part[0]["offset"] for part in chunks] == [[0, 0], [48, 0]]


def test_charlm_on_two_ranks_is_charlm_on_one_but_for_rounding(
    told: Callable[[str], list[dict[str, Any]]], tmp_path: Path
) -> None:
    alone = RankTrial(CHARLM, tmp_path)
    charlm.objective(alone)
    for rank in told("charlm-whole"):
        assert list(rank["reports"].values()) == pytest.approx(list(alone.reports.values()), abs=1e-3)


def test_charlm_goes_on_with_one_rank_where_two_were(
    told: Callable[[str], list[dict[str, Any]]], tmp_path: Path
) -> None:
    first = told("charlm-first")
    step = first[0]["last"][0]
    trial = RankTrial(CHARLM, tmp_path, start=(step, tuple(rank["last"][1] for rank in first)))
    value = charlm.objective(trial)
    assert list(trial.reports) == [3]
    assert value == pytest.approx(told("charlm-whole")[0]["end"], abs=1e-3)


# ------------------------------------------------------------------- on Ray, and a rank is killed

KILLED = """
import os, signal
from pathlib import Path
from objectives import charlm, fashion

charlm.EPOCHS = fashion.EPOCHS = 3
charlm.STEPS = 4
os.environ["FASHION_MNIST"] = "/nowhere"

def objective(trial):
    module = fashion if trial.study.study_name == "fashion" else charlm
    trial.seed = 3  # the same training twice
    if trial.attempt == 1 and trial.rank == 1 and trial.number == 1:
        log = trial.log
        def die(metrics, step):
            if step == 2:  # the first epoch's checkpoint is recorded, and rank 0 needs this rank again
                os.kill(os.getpid(), signal.SIGKILL)
            log(metrics, step)
        trial.log = die
    trial.set_user_attr("attempt", trial.attempt)
    return module.objective(trial)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster():
        yield


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("name", [pytest.param("fashion", marks=pytest.mark.chaos), "charlm"])
def test_a_killed_rank_costs_nothing_but_time(
    name: str, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "killed.py"
    file.write_text(KILLED)
    study = tuner.create_study(name, storage=sqlite_url, seed=3)
    for _ in ("whole", "killed"):
        study.enqueue_trial(FASHION if name == "fashion" else CHARLM)
    resources = tuner.Resources(ranks=2, cpus=0.5, gpus=0)
    tuner.optimize(
        study, f"{file}:objective", n_trials=2, resources=resources, max_concurrent=1, progress=False
    )
    whole, killed = study.trials
    assert (whole.user_attrs["attempt"], killed.user_attrs["attempt"]) == (1, 2)
    assert killed.value == whole.value
    assert killed.intermediate_values == whole.intermediate_values
    assert max(whole.intermediate_values) == 3
