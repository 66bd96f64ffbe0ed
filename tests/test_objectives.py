"""The ready objectives: known optima are met, ranks agree, a resumed training is the same training."""

from __future__ import annotations

import collections
import importlib
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import optuna
import pytest
import torch
from optuna.trial import FixedTrial, TrialState

import tuner
from objectives import demo, digits, functions, model_parallel, quadratic
from tests.ranks import RankTrial, run_script, same

ADAM = {
    "lr": 0.005,
    "batch_size": 64,
    "width": 160,
    "depth": 2,
    "dropout": 0.2,
    "weight_decay": 1e-5,
    "optimizer": "adam",
    "beta1": 0.9,
}
SGD = {**ADAM, "lr": 0.1, "optimizer": "sgd", "momentum": 0.8, "nesterov": True}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a trial with one core; what other tests see is put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ------------------------------------------------------------------- several ranks

# Forked from a fresh interpreter, as a trial's ranks are: one import of torch serves all of them,
# and nothing that another test has started is inherited.
RANKS = """
import json, os, sys
from pathlib import Path
import torch, torch._dynamo, torch.distributed as dist
torch.set_num_threads(1)
from tests.ranks import RankTrial
from test_objectives import ADAM, SGD
from objectives import digits, model_parallel, quadratic
digits.EPOCHS = model_parallel.EPOCHS = 3

def run(name, rank, world_size, objective, params, **options):
    folder = Path(sys.argv[1]) / name
    file = f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=file, rank=rank, world_size=world_size)
    trial = RankTrial(params, folder, rank=rank, world_size=world_size, **options)
    try:
        end = objective(trial)
    except Exception as error:
        end = type(error).__name__
    dist.barrier()
    dist.destroy_process_group()
    torch.save(trial.last_state() if trial.saved else None, folder / f"state-{rank}")
    told = {"end": end, "reports": trial.reports, "attrs": trial.user_attrs, "metrics": trial.metrics}
    (folder / f"told-{rank}").write_text(json.dumps(told))
    return trial.last() if trial.saved else None

def group(name, world_size, *work, then=None):
    (Path(sys.argv[1]) / name).mkdir()
    if then:
        (Path(sys.argv[1]) / then).mkdir()
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            start = run(name, rank, world_size, *work, **({"stop_at": 2} if then else {}))
            if then:
                run(then, rank, world_size, *work, start=start)
            os._exit(0)
        children.append(child)
    assert not any([os.waitpid(child, 0)[1] for child in children])

for ranks in (2, 3, 5):
    group(f"quadratic-{ranks}", ranks, quadratic.objective, {"lr": 0.1})
plain = {**SGD, "dropout": 0.0, "batch_size": 32}
for ranks in (2, 3):
    group(f"plain-{ranks}", ranks, digits.objective, plain)
group("whole", 2, digits.objective, ADAM)
group("first", 2, digits.objective, ADAM, then="second")
split = {"lr": 0.03, "width": 64, "batch_size": 64}
for ranks in (2, 3):
    group(f"split-{ranks}", ranks, model_parallel.objective, split)
group("split-first", 2, model_parallel.objective, split, then="split-second")
"""


class Told:
    """What the ranks of one group said and saved."""

    def __init__(self, folder: Path) -> None:
        import json

        files = sorted(folder.glob("told-*"))
        self.ranks = [json.loads(file.read_text()) for file in files]
        self.states = [torch.load(folder / f"state-{rank}", weights_only=False) for rank in range(len(files))]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Told]:
    """The results of the groups above, by name."""
    folder = tmp_path_factory.mktemp("groups")
    script = folder / "ranks.py"
    script.write_text(RANKS)
    run_script(script, str(folder))
    return lambda name: Told(folder / name)


# ------------------------------------------------------------------- quadratic


def test_quadratic_finds_minus_one(tmp_path: Path) -> None:
    trial = RankTrial({"lr": 0.5}, tmp_path)
    assert quadratic.objective(trial) == 0.0
    assert trial.user_attrs["x"] == -1.0


def test_quadratic_follows_the_formula(tmp_path: Path) -> None:
    trial = RankTrial({"lr": 0.1}, tmp_path)
    value = quadratic.objective(trial)
    assert value == pytest.approx(25 * 0.8 ** (2 * quadratic.STEPS), abs=1e-12)
    assert list(trial.reports) == list(range(1, quadratic.STEPS + 1))
    assert trial.reports[1] == pytest.approx(25 * 0.8**2)


def test_quadratic_diverges_above_one(tmp_path: Path) -> None:
    assert quadratic.objective(RankTrial({"lr": 1.1}, tmp_path)) > 25


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_quadratic_gives_the_same_answer_on_any_number_of_ranks(
    ranks: int, groups: Callable[[str], Told], tmp_path: Path
) -> None:
    alone = RankTrial({"lr": 0.1}, tmp_path)
    value = quadratic.objective(alone)
    told = groups(f"quadratic-{ranks}").ranks
    assert len(told) == ranks
    for rank in told:
        assert rank["end"] == pytest.approx(value, abs=1e-12)
        assert rank["attrs"]["x"] == pytest.approx(alone.user_attrs["x"], abs=1e-12)
        assert list(rank["reports"].values()) == pytest.approx(list(alone.reports.values()), abs=1e-12)


def test_no_rank_of_quadratic_knows_the_function_alone() -> None:
    x = torch.tensor(4.0, dtype=torch.float64)
    terms = list(quadratic.COEFFICIENTS.items())
    parts = [quadratic.value_and_gradient(x, terms[rank::2], world_size=1) for rank in range(2)]
    assert all(value != 25 and slope != 10 for value, slope in parts)
    assert sum(value for value, _ in parts) == 25
    assert sum(slope for _, slope in parts) == 10


def test_quadratic_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    whole = RankTrial({"lr": 0.03}, tmp_path / "whole")
    value = quadratic.objective(whole)
    first = RankTrial({"lr": 0.03}, tmp_path / "parts", stop_at=7)
    quadratic.objective(first)
    assert max(first.saved) == max(first.reports) == 7
    second = RankTrial({"lr": 0.03}, tmp_path / "parts", start=first.last())
    assert quadratic.objective(second) == value
    assert {**first.reports, **second.reports} == whole.reports


def test_quadratic_leaves_when_it_is_pruned(tmp_path: Path) -> None:
    trial = RankTrial({"lr": 0.03}, tmp_path, prune_at=3)
    with pytest.raises(optuna.TrialPruned):
        quadratic.objective(trial)
    assert max(trial.reports) == 3


# ------------------------------------------------------------------- digits


def test_the_split_is_whole_disjoint_and_stratified() -> None:
    parts = [digits.load_data(name) for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1077, 360, 360]
    rows = collections.Counter(row.numpy().tobytes() for part in parts for row in part.images)
    images = torch.cat([part.images for part in parts])
    assert rows.total() == 1797
    assert (images.min().item(), images.max().item()) == (0.0, 1.0)
    assert len(rows) == 1797, "no image is in two parts"
    for part in parts:
        share = torch.bincount(part.labels, minlength=10) / len(part)
        assert share.min() > 0.09
        assert share.max() < 0.11


def test_the_split_does_not_follow_the_seed() -> None:
    before = digits.load_data("test").images
    torch.manual_seed(1)
    numpy.random.seed(1)
    assert torch.equal(digits.load_data.__wrapped__("test").images, before)


def test_a_final_training_takes_the_validation_images_and_selects_by_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (train, judge), (usual, _) = digits.data_of(True), digits.data_of(False)
    assert (len(train), len(usual)) == (1437, 1077)
    assert judge is digits.load_data("test")
    monkeypatch.setattr(digits, "EPOCHS", 3)
    trial = RankTrial(ADAM, tmp_path, final=True)
    accuracy = digits.objective(trial)
    assert accuracy == trial.reports[3] == digits.evaluate_test(trial.last_state())


def test_a_good_configuration_reaches_97_percent(tmp_path: Path) -> None:
    trial = RankTrial(ADAM, tmp_path)
    accuracy = digits.objective(trial)
    assert accuracy >= 0.97
    assert accuracy == max(trial.reports.values())
    assert list(trial.reports) == list(range(1, 28))
    assert trial.reports[trial.user_attrs["best_epoch"]] == accuracy
    assert digits.evaluate_test(trial.last_state()) >= 0.94


def test_a_bad_configuration_shows_at_the_first_rungs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 3)
    good = digits.objective(RankTrial(ADAM, tmp_path))
    for bad in ({**ADAM, "lr": 1.0}, {**SGD, "lr": 1e-4}, {**SGD, "lr": 1.0, "momentum": 0.99}):
        assert digits.objective(RankTrial(bad, tmp_path)) < good - 0.2


@pytest.mark.parametrize("params", [ADAM, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_resumed_training_is_the_uninterrupted_one_to_the_last_bit(
    params: dict[str, Any], stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 6)
    whole = RankTrial(params, tmp_path / "whole")
    value = digits.objective(whole)

    first = RankTrial(params, tmp_path / "parts", stop_at=stop_at)
    digits.objective(first)
    assert max(first.saved) == max(first.reports) == stop_at
    torch.rand(17)  # whatever the next process has drawn before
    second = RankTrial(params, tmp_path / "parts", start=first.last())
    assert digits.objective(second) == value
    assert min(second.reports) == stop_at + 1
    assert {**first.reports, **second.reports} == whole.reports
    assert {**first.metrics, **second.metrics} == whole.metrics
    assert second.user_attrs == whole.user_attrs
    assert same(second.last_state(), whole.last_state())


def test_another_seed_is_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 1)
    losses = []
    for seed in (7, 7, 8):
        trial = RankTrial(ADAM, tmp_path, seed=seed)
        digits.objective(trial)
        losses.append(trial.metrics[1]["train/loss"])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_batch_belongs_to_the_search_and_not_to_the_number_of_ranks(
    ranks: int, groups: Callable[[str], Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 3)
    alone = RankTrial({**SGD, "dropout": 0.0, "batch_size": 32}, tmp_path)
    digits.objective(alone)
    told = groups(f"plain-{ranks}")
    weights = alone.last_state()["model"]
    for rank, state in zip(told.ranks, told.states, strict=True):
        # The last batch has 21 rows, and 32 are no multiple of three: the shares differ by a row.
        for name, value in state["model"].items():
            assert torch.allclose(value, weights[name], atol=1e-3), name
        for epoch, metrics in alone.metrics.items():
            assert rank["metrics"][str(epoch)]["train/loss"] == pytest.approx(metrics["train/loss"], rel=1e-3)


def test_ranks_hold_the_same_weights_and_say_the_same(groups: Callable[[str], Told]) -> None:
    told = groups("whole")
    assert told.ranks[0] == told.ranks[1]
    assert same(told.states[0], told.states[1])


def test_two_ranks_resume_to_the_last_bit(groups: Callable[[str], Told]) -> None:
    whole, first, second = groups("whole"), groups("first"), groups("second")
    for rank in range(2):
        assert list(first.ranks[rank]["reports"]) == ["1", "2"]
        assert list(second.ranks[rank]["reports"]) == ["3"]
        assert second.ranks[rank]["end"] == whole.ranks[rank]["end"]
        assert second.ranks[rank]["metrics"]["3"] == whole.ranks[rank]["metrics"]["3"]
        assert same(second.states[rank], whole.states[rank])


def test_a_split_model_trains_as_the_whole_one(
    groups: Callable[[str], Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_parallel, "EPOCHS", 3)
    alone = RankTrial({"lr": 0.03, "width": 64, "batch_size": 64}, tmp_path)
    value = model_parallel.objective(alone)
    assert value > 0.8
    for ranks in (2, 3):
        for told in groups(f"split-{ranks}").ranks:
            assert told["end"] == pytest.approx(value, abs=1 / 360)
            for step, metrics in alone.metrics.items():
                assert told["metrics"][str(step)]["train/loss"] == pytest.approx(
                    metrics["train/loss"], abs=1e-5
                )


@pytest.mark.parametrize("width", [64, 100, 256])
def test_no_rank_of_two_holds_more_than_60_percent_and_the_parts_are_the_whole(width: int) -> None:
    def weights(rank: int, ranks: int) -> list[torch.Tensor]:
        return list(model_parallel.stage_of(width, rank, ranks, 7).parameters())

    whole, parts = weights(0, 1), [weights(rank, 2) for rank in (0, 1)]
    assert same([*parts[0], *parts[1]], whole)
    sizes = [sum(one.numel() for one in part) for part in parts]
    assert max(sizes) <= 0.6 * sum(sizes)


def test_a_split_model_resumes_to_the_last_bit(groups: Callable[[str], Told]) -> None:
    whole, first, second = groups("split-2"), groups("split-first"), groups("split-second")
    for rank in range(2):
        assert list(first.ranks[rank]["reports"]) == ["1", "2"]
        assert second.ranks[rank]["end"] == whole.ranks[rank]["end"]
        assert second.ranks[rank]["metrics"]["3"] == whole.ranks[rank]["metrics"]["3"]
        assert same(second.states[rank], whole.states[rank])


def test_digits_leaves_when_it_is_pruned_but_not_after_its_last_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 3)
    early = RankTrial(ADAM, tmp_path, prune_at=1)
    with pytest.raises(optuna.TrialPruned):
        digits.objective(early)
    assert list(early.reports) == [1]
    assert digits.objective(RankTrial(ADAM, tmp_path, prune_at=3)) > 0.8


def test_what_is_tested_is_what_was_selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 3)
    trial = RankTrial(ADAM, tmp_path)
    digits.objective(trial)
    state = trial.last_state()
    tested = digits.evaluate_test(state)
    for weight in state["model"].values():
        weight.zero_()  # the last epoch's, which need not be the best
    assert digits.evaluate_test(state) == tested
    for weight in state["best"]["weights"].values():
        weight.zero_()
    assert digits.evaluate_test(state) < 0.2


def test_conditional_parameters_belong_to_their_optimizer() -> None:
    sampled = []

    def ask_only(trial: optuna.Trial) -> float:
        model = digits.network(16, 1, 0.0)
        digits.make_optimizer(trial, model)  # type: ignore[arg-type]
        sampled.append(set(trial.params))
        return 0.0

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(ask_only, n_trials=20)
    shared = {"lr", "weight_decay", "optimizer"}
    assert {frozenset(names - shared) for names in sampled} == {
        frozenset({"momentum", "nesterov"}),
        frozenset({"beta1"}),
    }


# ------------------------------------------------------------------- functions


@pytest.mark.parametrize(
    ("name", "point", "optimum"),
    [
        ("branin", {"x": -math.pi, "y": 12.275}, 0.397887),
        ("branin", {"x": math.pi, "y": 2.275}, 0.397887),
        ("branin", {"x": 9.42478, "y": 2.475}, 0.397887),
        ("constrained_branin", {"x": math.pi, "y": 2.275}, 0.397887),
        ("rosenbrock", dict.fromkeys(["x0", "x1", "x2", "x3"], 1.0), 0.0),
        (
            "hartmann6",
            dict(
                zip(
                    [f"x{index}" for index in range(6)],
                    (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573),
                    strict=True,
                )
            ),
            -3.32237,
        ),
    ],
)
def test_the_optimum_is_where_it_is_known_to_be(name: str, point: dict[str, float], optimum: float) -> None:
    function = getattr(functions, name)
    assert function(FixedTrial(point)) == pytest.approx(optimum, abs=1e-5)
    for key, step in itertools.product(point, (-0.01, 0.01)):
        assert function(FixedTrial({**point, key: point[key] + step})) > optimum


def test_the_disk_leaves_one_of_branins_minima() -> None:
    minima = [(-math.pi, 12.275), (math.pi, 2.275), (9.42478, 2.475)]
    feasible = []
    for x, y in minima:
        trial = FixedTrial({"x": x, "y": y})
        functions.constrained_branin(trial)
        feasible.append(trial.constraints["disk"] <= 0)
    assert feasible == [False, True, False]


@pytest.mark.parametrize("first", [0.0, 0.25, 1.0])
def test_the_front_of_zdt1_is_one_minus_the_root(first: float) -> None:
    point = {"x0": first, **{f"x{index}": 0.0 for index in range(1, 30)}}
    assert functions.zdt1(FixedTrial(point)) == (first, pytest.approx(1 - math.sqrt(first)))
    off = functions.zdt1(FixedTrial({**point, "x7": 0.5}))
    assert off[1] > 1 - math.sqrt(first)


def test_each_function_runs_under_tuner_with_a_minimum_that_a_sampler_cannot_pass(sqlite_url: str) -> None:
    lowest = {"branin": 0.397887, "constrained_branin": 0.397887, "hartmann6": -3.32237, "rosenbrock": 0.0}
    for name in functions.__all__:
        directions = ["minimize"] * (2 if name == "zdt1" else 1)
        study = tuner.create_study(name, storage=sqlite_url, seed=1, directions=directions, sampler="random")
        tuner.optimize(study, getattr(functions, name), n_trials=5, executor="inline")
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5
        if name in lowest:
            assert all(trial.value > lowest[name] - 1e-5 for trial in study.trials)
        if name == "constrained_branin":
            assert all("disk" in trial.constraints for trial in study.trials)


# ------------------------------------------------------------------- the demo and its picture


@pytest.fixture
def small_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[tuple[optuna.Study, str]]:
    """The demo's study after three short trials on the inline executor, and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, "EPOCHS", 3)
    monkeypatch.setattr(demo, "TRIALS", 3)
    monkeypatch.setattr(demo, "RANKS", 1)
    original = tuner.optimize
    monkeypatch.setattr(
        tuner, "optimize", lambda *given, **options: original(*given, **{**options, "executor": "inline"})
    )
    verbosity = optuna.logging.get_verbosity()
    assert demo.main() == 0
    yield tuner.load_study(demo.NAME, storage=demo.STORAGE), capsys.readouterr().out
    optuna.logging.set_verbosity(verbosity)


def test_the_demo_ends_with_its_result_and_shows_it_again(
    small_demo: tuple[optuna.Study, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study, first = small_demo
    tested = study.user_attrs[demo.TESTED]
    assert tested["trial"] == study.best_trial.number
    assert f"{study.best_value:.4f}" in first
    assert f"{tested['accuracy']:.4f}" in first
    assert "saved" in first
    assert Path(demo.PICTURE).read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(
        digits, "evaluate_test", lambda state: pytest.fail("the test images were asked again")
    )
    assert demo.main() == 0
    again = capsys.readouterr().out
    assert "complete" in again
    assert first[first.index("Best trials") :] == again[again.index("Best trials") :]
    assert len(study.get_trials()) == 3


def test_the_demo_goes_on_where_it_was(
    small_demo: tuple[optuna.Study, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study, _ = small_demo
    before = [trial.datetime_complete for trial in study.get_trials()]
    monkeypatch.setattr(demo, "TRIALS", 4)
    assert demo.main() == 0
    assert "Going on with study digits: 3 of its 4 trials are done." in capsys.readouterr().out
    assert [trial.datetime_complete for trial in study.get_trials()][:3] == before
    assert len(study.get_trials()) == 4


def test_an_interrupted_demo_says_that_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuner, "optimize", interrupted)
    assert demo.main() == 130
    assert "goes on from here" in capsys.readouterr().out


def test_an_error_of_the_demo_is_one_line_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo.db").write_text("no database at all, but a text that is long enough to be looked at\n" * 40)
    assert demo.main() == 2
    error = capsys.readouterr().err
    assert "demo.db" in error
    assert "Traceback" not in error


def test_every_state_has_its_place_in_the_picture(tmp_path: Path) -> None:
    from objectives.plot import draw_study

    study = optuna.create_study(direction="maximize", study_name="states")
    for state, value, curve in (
        (TrialState.PRUNED, None, {1: 0.0}),
        (TrialState.COMPLETE, 1.0, {1: 0.5, 2: 1.0}),
        (TrialState.FAIL, None, {}),
        (TrialState.COMPLETE, 0.9, {2: 0.9, 1: 0.4}),
    ):
        study.add_trial(optuna.trial.create_trial(state=state, value=value, intermediate_values=curve))
    draw_study(study, tmp_path / "picture.png", step="epoch")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_each_objective_says_what_it_teaches() -> None:
    for name in ("quadratic", "digits", "functions", "model_parallel"):
        module = importlib.import_module(f"objectives.{name}")
        assert "What it teaches" in (module.__doc__ or "")
