"""What the command line says of a study."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import optuna
import pytest

import tuner
from tests.cli_data import Run


def test_studies_lists_and_searches(run: Run) -> None:
    _, out, _ = run("studies", "constr")
    assert "constrained" in out
    assert "objective " not in out.splitlines()[1]
    rows = json.loads(run("studies", "constr", "--json")[1])
    assert [(row["name"], row["states"], row["driver"]) for row in rows] == [
        ("constrained", {"COMPLETE": 4}, "none")
    ]


def test_a_name_commands_no_terminal_and_stays_in_its_row(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/names.db"
    optuna.create_study(study_name="two\nlines \x1b]0;title\x07", storage=url)
    code, out, _ = run("studies", "--storage", url)
    assert (code, out.count("\n")) == (0, 2)
    assert "two\\nlines \\x1b]0;title\\x07" in out
    code, _, err = run("status", "another", "--storage", url)
    assert (code, err.count("\n")) == (2, 1)
    assert "\x1b" not in err


def test_status_of_an_ended_study_says_why_and_watching_it_ends_at_once(run: Run) -> None:
    for arguments in (["status", "fails"], ["status", "fails", "--watch"]):
        code, out, _ = run(*arguments)
        assert code == 0
        assert "2 failed" in out or "failed 2" in out
    assert "2 x exception: ValueError: boom" in run("status", "fails")[1]
    assert "budget of 2 trials spent" in run("status", "fails")[1]


def test_trials_can_be_filtered_sorted_and_paged(run: Run) -> None:
    page = json.loads(
        run("trials", "constrained", "--sort", "value", "--descending", "--limit", "2", "--json")[1]
    )
    assert [row["values"] for row in page["trials"]] == [[8.0], [5.0]]
    assert page["total"] == 4
    code, out, _ = run("trials", "fails", "--state", "fail", "--limit", "1")
    assert code == 0
    assert "exception" in out
    assert "1 of 2 trials (page 1 of 2)" in out
    assert "0 of 0 trials" in run("trials", "fails", "--state", "pruned")[1]
    where = ("--where", "value>2", "--where", "number<4", "--sort", "value:0", "--json")
    page = json.loads(run("trials", "constrained", *where)[1])
    values = [row["values"][0] for row in page["trials"]]
    assert values == sorted(values)
    assert min(values) > 2
    assert page["total"] == len(values) < 4


def test_show_has_set_up_curve_attempts_and_traceback(run: Run) -> None:
    _, out, _ = run("show", "objective")
    for part in ("random", "cli_objectives.py:objective", "ranks=1", "n_trials=3"):
        assert part in out
    _, out, _ = run("show", "objective", "1")
    for part in ("COMPLETE", "3 reports", "kind", "half", "attempt 1, step 2", f"process {os.getpid()}"):
        assert part in out
    _, out, _ = run("show", "fails", "0")
    assert 'raise ValueError("boom [x]")' in out
    detail = json.loads(run("show", "fails", "0", "--json")[1])
    assert detail["attempt_rows"][0]["exception"] == "ValueError"


def test_show_says_of_each_attempt_that_did_not_end_well_whether_it_was_charged(
    run: Run, sqlite_url: str
) -> None:
    def objective(trial: tuner.Trial) -> float:
        if trial.attempt == 1:
            raise ConnectionError("flaky")
        if trial.attempt == 2:
            raise tuner.CheckpointNotSaved("no room")
        return 1.0

    study = tuner.create_study("again", storage=sqlite_url)
    policy = tuner.Retry(retry_on=("ConnectionError",), backoff=0.0)
    tuner.optimize(study, objective, n_trials=1, executor="inline", retry=policy, progress=False)
    out = run("show", "again", "0", "--storage", sqlite_url)[1]
    for said in ("1  ended  exception, charged  ", "2  ended  checkpoint_not_saved, uncharged  "):
        assert said in out
    assert "3  ended  complete  " in out


def test_a_study_that_only_optuna_knows_can_be_read(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/plain.db"
    study = optuna.create_study(study_name="plain", storage=url)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    for arguments in (
        ["studies"],
        ["status", "plain"],
        ["trials", "plain"],
        ["show", "plain"],
        ["best", "plain"],
    ):
        code, out, err = run(*arguments, "--storage", url)
        assert code == 0, err
        assert out
    code, _, err = run("stop", "plain", "--storage", url)
    assert code == 1
    assert "nobody drives it" in err


@pytest.mark.parametrize("form", ["yaml", "json", "python"])
def test_best_writes_parameters_that_read_back_the_same(
    run: Run, form: str, made: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/values.db"
    wanted = {"lr": 1e-05, "big": 3e22, "no": "no", "n": 3, "flag": True, "none": None, "text": "a: b # é"}
    study = optuna.create_study(study_name="v", storage=url)
    study.add_trial(
        optuna.trial.create_trial(
            params=wanted,
            distributions={
                key: optuna.distributions.CategoricalDistribution([value])  # type: ignore[list-item]
                if not isinstance(value, float)
                else optuna.distributions.FloatDistribution(0, 1e23)
                for key, value in wanted.items()
            },
            value=1.0,
        )
    )
    code, out, _ = run("best", "v", "--format", form, "--storage", url)
    assert code == 0
    assert _read(form, out) == wanted


def _read(form: str, text: str) -> Any:
    if form == "json":
        return json.loads(text)
    if form == "python":
        names: dict[str, Any] = {}
        exec(text, names)
        return names["params"]
    return pytest.importorskip("yaml").safe_load(text)


def test_best_respects_constraints_and_shows_a_front(run: Run) -> None:
    best = json.loads(run("best", "constrained", "--json")[1])["best_trials"]
    assert [trial["values"] for trial in best] == [[4.0]]
    front = json.loads(run("best", "two", "--json")[1])["best_trials"]
    assert len(front) == 3  # of (x, 1 - x) every trial is on the front
    assert "trial" in run("best", "two")[1]


def test_best_copies_a_checkpoint_that_was_verified(run: Run, tmp_path: Path) -> None:
    code, _, err = run("best", "objective", "--checkpoint", str(tmp_path / "final"))
    assert code == 0
    assert "step 2" in err
    assert (tmp_path / "final" / "rank-0.pt").stat().st_size > 0
    code, _, err = run("best", "objective", "--checkpoint", str(tmp_path / "final"))
    assert code == 2
    assert "not empty" in err
    code, _, err = run("best", "constrained", "--checkpoint", str(tmp_path / "other"))
    assert code == 2
    assert not (tmp_path / "other").exists()


def test_best_without_a_complete_trial_exits_1(run: Run) -> None:
    code, _, err = run("best", "fails")
    assert code == 1
    assert "no complete trial" in err
