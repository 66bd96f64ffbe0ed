"""Daily ends: the winner trained again, its parameters and checkpoint taken along, a run rehearsed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

import tuner
from storage import Database
from tuner import checkpoint, forecast
from tuner.cli import main
from tuner.cli.best import written
from tuner.cli.printing import seconds_text, size_text
from tuner.forecast import Forecast, Pace, is_enough, pace

OBJECTIVES = """
import os
import time
from pathlib import Path

import optuna

HERE = Path(__file__).parent


def fit(trial):
    (HERE / "ran").touch()
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    width = trial.suggest_int("width", 8, 64, step=8)
    kind = trial.suggest_categorical("kind", ["adam", "sgd"])
    trial.set_constraint("width", 60 - width if trial.study.study_name == "bounded" else 0)
    rows = "train + validation" if trial.final else "train"
    trial.set_user_attr("rows", rows)
    trial.set_user_attr("world", trial.world_size)
    for step in range(3):
        trial.report(lr + step, step)
        trial.save_checkpoint({"rank": trial.rank, "rows": rows, "kind": kind}, step)
    return lr + width


def waits(trial):
    \"\"\"Reports, saves, and goes on until it is ended.\"\"\"
    lr = trial.suggest_float("lr", 0.0, 1.0)
    Path("left-behind").write_text("x")
    for step in range(10**6):
        trial.report(lr, step)
        trial.save_checkpoint({"lr": lr}, step)
        time.sleep(0.01)


def stops_when_asked(trial):
    step = 0
    while not trial.should_stop():
        if step == 3 and trial.rank == 0:
            os.kill(int(os.environ["DRIVER"]), 2)
        trial.report(0.0, step)
        step += 1
        time.sleep(0.01)
    trial.save_checkpoint({"step": step}, step)
    return 0.0


def fails(trial):
    raise ValueError("boom [x]")
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with objectives, and a database with two studies of one of them."""
    folder = tmp_path_factory.mktemp("daily")
    file = folder / "daily_objectives.py"
    file.write_text(OBJECTIVES)
    url = f"sqlite:///{folder}/tuner.db"
    for name in ("digits", "bounded"):
        study = tuner.create_study(name, storage=url, sampler="random", seed=1)
        study.enqueue_trial({"lr": 0.5, "width": 8, "kind": "sgd"})
        study.enqueue_trial({"lr": 0.25, "width": 64, "kind": "adam"})
        tuner.optimize(study, f"{file}:fit", n_trials=2, executor="inline", progress=False)
    (folder / "ran").unlink()
    return folder


@pytest.fixture
def run(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in the folder, on its database: (exit code, stdout, stderr)."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("TUNER_STORAGE", f"sqlite:///{made}/tuner.db")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray that the commands of this process find."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_worker_niceness", "0")  # as in a Ray of our own: else ranks lose to all else here
        context = ray.init(
            address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False
        )
    yield
    ray.shutdown()
    shutil.rmtree(context.address_info["session_dir"], ignore_errors=True)


def files_of(folder: Path) -> set[str]:
    """Without what SQLite and Python keep for as long as somebody has a file open."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}
    return {name for name in found if not name.endswith(("-wal", "-shm"))}


# ---------------------------------------------------------------------- the winner once more


def test_the_best_trial_is_trained_as_the_final_one_and_others_as_they_were(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(
        "run", "daily_objectives.py:fit", "--params", "@digits:best", "--checkpoints", str(tmp_path)
    )
    assert code == 0
    assert "rows = 'train + validation'" in out
    assert out.splitlines()[-1] == "value 8.5"
    saved = max(tmp_path.rglob("rank-0.pt"))
    assert str(saved) in out
    assert tuner.load_checkpoint(saved)["rows"] == "train + validation"
    for arguments, rows in (
        (("@digits:0",), "train"),
        (("@digits:best", "--no-final"), "train"),
        (("@digits:1", "--final"), "train + validation"),
        (("lr=0.1,width=8,kind=sgd",), "train"),
        (("lr=0.1,width=8,kind=sgd", "--final"), "train + validation"),
        (("@digits:best,lr=0.1",), "train + validation"),
    ):
        code, out, _ = run("run", "daily_objectives.py:fit", "--params", *arguments)
        assert code == 0
        assert f"rows = {rows!r}" in out, arguments


def test_the_best_is_the_best_that_keeps_its_constraints(run: Run) -> None:
    assert (
        run("run", "daily_objectives.py:fit", "--params", "@bounded:best")[1].splitlines()[-1]
        == "value 64.25"
    )


REFUSED = {
    "unknown": ("@digits:best,widht=8", "study 'digits' has no parameter 'widht'; did you mean 'width'?"),
    "unlike all": ("@digits:best,zzz=8", "has no parameter 'zzz'; it has kind, lr, width"),
    "out of range": ("@digits:best,lr=7", "lr=7 is not in FloatDistribution(high=1.0, log=True, low=0.0001"),
    "off the grid": (
        "@digits:1,width=13",
        "width=13 is not in IntDistribution(high=64, log=False, low=8, step=8)",
    ),
    "no choice": ("@digits:best,kind=adamw", "kind='adamw' is not in CategoricalDistribution"),
    "text": ("@digits:best,lr=fast", "lr='fast' is not in FloatDistribution"),
    "no equals": ("@digits:best,lr", "'lr': write NAME=VALUE"),
    "which": ("@digits:worst", "write @STUDY:best or @STUDY:NUMBER"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parameters_that_the_space_refuses_are_one_line_before_anything_runs(
    run: Run, made: Path, case: str
) -> None:
    text, said = REFUSED[case]
    (made / "ran").unlink(missing_ok=True)
    code, out, err = run("run", "daily_objectives.py:fit", "--params", text)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not (made / "ran").exists()


def test_a_file_that_has_changed_may_have_another_space(run: Run, made: Path, tmp_path: Path) -> None:
    wider = tmp_path / "wider_objectives.py"
    wider.write_text(OBJECTIVES.replace("1e-4, 1.0", "1e-4, 10.0"))
    code, out, _ = run("run", f"{wider}:fit", "--params", "@digits:best,lr=7")
    assert (code, out.splitlines()[-1]) == (0, "value 15")
    code, _, err = run("run", f"{wider}:fit", "--params", "@digits:best,lr=70")
    assert (code, err.count("\n")) == (2, 1)
    assert "lr=70 is not in FloatDistribution" in err


def test_a_name_that_was_mistyped_is_named(run: Run) -> None:
    code, _, err = run("run", "daily_objectives.py:fit", "--params", "lr=0.1,widht=8,kind=sgd")
    assert (code, err.count("\n")) == (2, 1)
    assert "asks for 'width' (IntDistribution" in err
    assert "write it for 'widht'" in err


@pytest.mark.usefixtures("cluster")
def test_a_final_training_on_two_ranks_leaves_its_checkpoints_and_nothing_else(
    run: Run, made: Path, tmp_path: Path
) -> None:
    before = files_of(made) - {"ran"}
    code, out, err = run(
        "run", "daily_objectives.py:fit", "--params", "@digits:best", "--ranks", "2", "--cpus", "0.5",
        "--checkpoints", str(tmp_path),
    )  # fmt: skip
    assert code == 0, err
    assert "2 ranks on" in err
    assert "world = 2" in out
    assert out.splitlines()[-1] == "value 8.5"
    newest = [tmp_path / "a1" / "step-2" / f"rank-{rank}.pt" for rank in (0, 1)]
    assert [tuner.load_checkpoint(path)["rank"] for path in newest] == [0, 1]
    assert files_of(made) - {"ran"} == before


@pytest.mark.usefixtures("cluster")
def test_a_final_training_that_is_interrupted_saves_a_checkpoint_and_exits_130(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIVER", str(os.getpid()))
    code, _, err = run(
        "run", "daily_objectives.py:stops_when_asked", "--params", "x=1", "--executor", "ray",
        "--env", "DRIVER", "--checkpoints", str(tmp_path),
    )  # fmt: skip
    assert (code, err.strip()) == (130, "error: interrupted")
    assert list(tmp_path.rglob("rank-0.pt"))


def test_final_belongs_to_one_trial(run: Run) -> None:
    code, _, err = run("run", "daily_objectives.py:fit", "--study", "n", "--trials", "2", "--final")
    assert (code, err.count("\n")) == (2, 1)
    assert "--final belongs to" in err


# ---------------------------------------------------------------------- its parameters, its checkpoint

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


@given(params=st.dictionaries(TEXT.filter(bool), VALUES, max_size=5), name=TEXT.filter(bool))
def test_every_form_gives_the_same_parameters_back(params: dict[str, Any], name: str) -> None:
    yaml = pytest.importorskip("yaml")
    trial: Any = types.SimpleNamespace(number=3, values=(0.5,), params=params)
    names: dict[str, Any] = {}
    exec(written("python", name, trial), names)
    assert exactly(names["params"]) == exactly(params)
    assert exactly(json.loads(written("json", name, trial))) == exactly(params)
    assert exactly(yaml.safe_load(written("yaml", name, trial))) == exactly(params)


def exactly(value: Any) -> str:
    """1, 1.0 and True are equal, and not the same."""
    return repr(value)


def test_what_is_not_a_number_reads_back_as_such() -> None:
    yaml = pytest.importorskip("yaml")
    trial: Any = types.SimpleNamespace(
        number=3, values=(0.5,), params={"a": float("nan"), "b": [float("nan")]}
    )
    names: dict[str, Any] = {}
    exec(written("python", "n", trial), names)
    for found in (names["params"], yaml.safe_load(written("yaml", "n", trial))):
        assert repr(found) == "{'a': nan, 'b': [nan]}"


def test_a_checkpoint_is_copied_whole_or_not_at_all(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "final"
    copied = checkpoint.copy

    def breaks(shard: Any, path: Path) -> None:
        copied(shard, path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "copy", breaks)
        code, _, err = run("best", "digits", "--checkpoint", str(target))
    assert (code, err) == (2, f"error: --checkpoint {target}: No space left on device; nothing was copied\n")
    assert list(tmp_path.iterdir()) == []
    target.mkdir()  # one that is empty is no harm
    assert run("best", "digits", "--checkpoint", str(target))[0] == 0
    assert files_of(tmp_path) == {"final", "final/rank-0.pt"}
    assert tuner.load_checkpoint(target / "rank-0.pt")["kind"] == "sgd"
    monkeypatch.chdir(tmp_path / "final")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for wrong in (target, Path("."), tmp_path / "link", target / "rank-0.pt"):
        code, _, err = run("best", "digits", "--checkpoint", str(wrong))
        assert (code, err.count("\n")) == (2, 1)
    assert files_of(tmp_path) == {"final", "final/rank-0.pt", "link"}


# ---------------------------------------------------------------------- a rehearsal


@pytest.mark.usefixtures("cluster")
def test_a_dry_run_rehearses_on_the_ranks_and_writes_nothing(run: Run, made: Path, tmp_path: Path) -> None:
    before = files_of(made) - {"ran"}
    code, out, err = run(
        "run", "daily_objectives.py:waits", "--study", "later", "--trials", "40",
        "--ranks", "2", "--cpus", "0.5", "--dry-run", "--json", "--storage", f"sqlite:///{tmp_path}/new.db",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert (found["n_trials"], found["finished"], found["slots"], found["new"]) == (40, 0, 2, True)
    rehearsed, predicted = found["rehearsal"], found["forecast"]
    assert rehearsed["reason"] == "stopped"
    assert [one["rank"] for one in rehearsed["ranks"]] == [0, 1]
    assert all(one["peak_rss"] >= one["memory"] > 2**20 for one in rehearsed["ranks"])
    assert rehearsed["between_reports"][0] >= 0.01
    assert predicted["seconds"] is None
    shortest, longest = predicted["seconds_by_reports"]["100"]
    assert longest >= shortest > 20 * 99 * 0.01  # 40 trials, two at once
    assert predicted["memory"] == 2 * sum(one["memory"] for one in rehearsed["ranks"])
    assert found["checkpoints"]["bytes"] > 0
    assert files_of(made) - {"ran"} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("cluster")
def test_the_rehearsed_parameters_are_those_of_the_first_trial(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/t.db"
    arguments = ("daily_objectives.py:fit", "--study", "s", "--trials", "1", "--seed", "7", "--storage", url)
    found = json.loads(run("run", *arguments, "--dry-run", "--json")[1])
    assert run("run", *arguments)[0] == 0
    assert tuner.load_study("s", storage=url).trials[0].params == found["rehearsal"]["params"]
    assert found["rehearsal"]["reason"] == "complete"
    assert found["forecast"]["seconds"] == found["rehearsal"]["whole_trial"] > 0


@pytest.mark.usefixtures("cluster")
def test_a_dry_run_says_what_would_go_wrong_on_a_worker(run: Run, made: Path) -> None:
    there = made / "only_here.py"
    there.write_text(
        "import os\n\nif 'TUNER_TRIAL' in os.environ:\n    import nowhere\n"
        "\n\ndef objective(trial):\n    return 0.0\n"
    )
    arguments = ("--study", "n", "--trials", "2", "--dry-run")
    code, _, err = run("run", "only_here.py", *arguments)
    there.unlink()
    assert (code, err.count("\n")) == (2, 1)
    assert "on a worker: " in err
    assert "only_here.py line 4: ModuleNotFoundError: No module named 'nowhere'" in err
    code, out, err = run("run", "daily_objectives.py:fails", *arguments)
    assert code == 1
    assert 'raise ValueError("boom [x]")' in err
    assert err.splitlines()[-1] == "error: the rehearsed trial failed: exception: ValueError: boom [x]"
    assert "passed" not in out


def test_a_dry_run_finds_a_database_that_cannot_be_written(made: Path, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "fixed.db"
    optuna.create_study(study_name="s", storage=f"sqlite:///{file}")
    database = Database(f"sqlite:///{file}", create=False)
    assert database.refusal() == ""
    assert optuna.load_study(study_name="s", storage=f"sqlite:///{file}").trials == []
    only_read = Database(f"sqlite:///{file}", create=False, read_only=True)
    assert "readonly database" in only_read.refusal()
    database.dispose()
    only_read.dispose()


def test_a_dry_run_in_this_process_prints_a_table(run: Run, made: Path, tmp_path: Path) -> None:
    code, out, err = run(
        "run", "daily_objectives.py:waits", "--study", "n", "--trials", "9", "--dry-run",
        "--executor", "inline",
        "--storage", f"sqlite:///{tmp_path}/new.db",
    )  # fmt: skip
    (made / "left-behind").unlink()
    assert code == 0, err
    for part in ("n (new)", "to be made here; workers never open it", "every node reads and writes there",
                 "lr=", "first report after", "rank 0 ", "for 1 at once", "9 trials: ",
                 "at 100 reports a trial", "nothing was written"):  # fmt: skip
        assert part in out
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- what is predicted


@given(st.lists(st.floats(0, 1e6), max_size=20).map(sorted), st.floats(0, 1e6))
def test_a_rehearsal_ends(reports: list[float], more: float) -> None:
    last = reports[-1] if reports else 0.0
    assert is_enough(reports, last + max(forecast.PATIENCE, forecast.LINGER[1]) + 1)
    assert not is_enough(reports, reports[0] if reports else min(more, forecast.PATIENCE))


@given(
    trials=st.integers(1, 10**6),
    slots=st.integers(1, 1000),
    reports=st.integers(1, 1000),
    moments=st.lists(st.floats(0.001, 1e4), min_size=2, max_size=20).map(sorted),
)
def test_more_trials_reports_or_fewer_slots_take_no_less_time(
    trials: int, slots: int, reports: int, moments: list[float]
) -> None:
    def least_and_most(trials: int, slots: int, reports: int) -> tuple[float, float]:
        found = Forecast(pace=pace(moments, None), trials=trials, slots=slots).seconds(reports)
        assert found is not None
        return found

    low, high = least_and_most(trials, slots, reports)
    assert moments[0] <= low <= high
    for other in ((trials + 1, slots, reports), (trials, slots, reports + 1)):
        assert least_and_most(*other) >= (low, high)
    assert least_and_most(trials, slots + 1, reports) <= (low, high)


def test_what_is_not_known_is_not_predicted() -> None:
    assert Forecast(pace=Pace(first=1.0), trials=5, slots=1).seconds(2) is None
    assert Forecast(pace=Pace(first=1.0), trials=5, slots=2).seconds(1) == (3.0, 3.0)
    assert Forecast(pace=Pace(), trials=5, slots=1).seconds(1) is None
    assert Forecast(pace=Pace(whole=2.0), trials=None, slots=1).whole() is None
    assert pace([], 2.0) == Pace(whole=2.0)


def test_durations_and_sizes_are_read_by_people() -> None:
    assert [seconds_text(one) for one in (0.0123, 9.96, 99.4, 100, 3600, 3661, 90_000, 86_405)] == [
        "0.012 s", "10 s", "99 s", "1 min 40 s", "1 h", "1 h 1 min", "1 d 1 h", "1 d"
    ]  # fmt: skip
    assert [size_text(one) for one in (5, 2**10, 3 * 2**19, 10**12)] == [
        "5 bytes",
        "1 KiB",
        "1.5 MiB",
        "931 GiB",
    ]
