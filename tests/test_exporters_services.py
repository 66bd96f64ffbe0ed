"""MLflow on a real tracking store in SQLite, and Weights & Biases offline: read back by their own code."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import optuna
import pytest

import tuner
from storage import Database, exports
from tests.test_exporters import run, states
from tuner.errors import BadInput

__all__ = ["states"]

BLOCK = 2**15

pytestmark = pytest.mark.filterwarnings("ignore")  # of the warnings of MLflow's and W&B's own code


@pytest.fixture
def mlflow() -> Any:
    return pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'tuner[mlflow]'")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("WANDB_MODE", "offline")
    return pytest.importorskip("wandb", reason="W&B is not installed: pip install 'tuner[wandb]'")


def all_runs(client: Any, experiment: str) -> list[Any]:
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], max_results=1000))


def test_mlflow_has_a_parent_and_a_run_for_each_trial(mlflow: Any, states: str, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert tuner.exporters.export("states", "mlflow", uri, storage=states) == uri
    client = mlflow.MlflowClient(tracking_uri=uri)
    runs = all_runs(client, "states")
    parents = [one for one in runs if "mlflow.parentRunId" not in one.data.tags]
    children = {
        int(one.data.tags["tuner.trial"]): one for one in runs if "mlflow.parentRunId" in one.data.tags
    }
    (parent,) = parents
    assert {one.data.tags["mlflow.parentRunId"] for one in children.values()} == {parent.info.run_id}
    study = optuna.load_study(study_name="states", storage=states)
    assert sorted(children) == [trial.number for trial in study.trials]
    for trial in study.trials:
        child = children[trial.number]
        assert set(child.data.params) == set(trial.params)
        assert float(child.data.params["lr"]) == trial.params["lr"]
        points = client.get_metric_history(child.info.run_id, "report")
        steps = {one.step: one.value for one in points}
        assert len(points) == len(trial.intermediate_values)  # of a retried one, too
        assert set(steps) == set(trial.intermediate_values)
        assert all(
            steps[step] == value for step, value in trial.intermediate_values.items() if math.isfinite(value)
        )
        assert child.data.metrics.get("objective/value") == trial.value
    wanted = {0: "FINISHED", 3: "KILLED", 4: "FAILED", 8: "RUNNING"}
    assert {number: children[number].info.status for number in wanted} == wanted
    assert children[4].data.tags["tuner.reason"] == "exception"
    assert parent.data.tags["tuner.best_trial"] == str(study.best_trial.number)
    folder = f"best/trial-{study.best_trial.number}/step-3"
    (artifact,) = client.list_artifacts(parent.info.run_id, folder)
    local = client.download_artifacts(parent.info.run_id, artifact.path, str(tmp_path))
    (part,) = [one for one in Path(states.removeprefix("sqlite:///")).parent.rglob("rank-0.pt")
               if f"/{study.best_trial.number}/" in str(one)]  # fmt: skip
    assert Path(local).read_bytes() == part.read_bytes()

    tuner.exporters.export("states", "mlflow", uri, storage=states)
    again = all_runs(client, "states")
    assert sorted(one.info.run_id for one in again) == sorted(one.info.run_id for one in runs)
    history = client.get_metric_history(children[0].info.run_id, "report")
    assert len(history) == 4


def test_mlflow_live_updates_and_makes_a_retried_trial_anew(
    mlflow: Any, sqlite_url: str, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    export = tuner.exporters.make("mlflow", uri)
    looks: list[int] = []

    def look() -> None:
        """As a live export does at any moment."""
        database = Database(sqlite_url, create=False)
        study = exports.study(database, "s")
        export.begin(study)
        for trial in exports.trials(database, study, list(exports.marks(database, study, 0))):
            export.trial(trial)
            looks.append(len(trial.reports))
        database.dispose()

    def objective(trial: tuner.Trial) -> float:
        trial.suggest_float("acc@5", 0, 1)
        for step in range(3):
            trial.report(step + trial.attempt / 10, step)
        trial.save_checkpoint({}, 2)  # durable on return, with what was said before it
        look()
        if trial.attempt == 1:
            trial.report(9.0, 3)
            trial.set_user_attr("late", "said")
            raise ConnectionError
        return 1.0

    retry = tuner.Retry(retry_on=(ConnectionError,), backoff=0.0)
    run(sqlite_url, objective, 1, retry=retry)
    look()
    export.close()
    assert looks == [3, 3, 3]
    client = mlflow.MlflowClient(tracking_uri=uri)
    (child,) = [one for one in all_runs(client, "s") if "tuner.trial" in one.data.tags]
    history = client.get_metric_history(child.info.run_id, "report")
    assert sorted((one.step, one.value) for one in history) == [(0, 0.1), (1, 1.1), (2, 2.1)]
    assert (child.info.status, child.data.tags["tuner.attempts"]) == ("FINISHED", "2")
    assert list(child.data.params) != ["acc@5"]


def records(folder: Path) -> list[Any]:
    """What is in the file of an offline run: W&B's messages, framed as LevelDB frames its log."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("run-*.wandb")
    content, at, parts, found = file.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:  # no room for a head: the next block
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def test_wandb_offline_has_a_run_for_each_finished_trial(wandb: Any, sqlite_url: str, tmp_path: Path) -> None:
    def objective(trial: tuner.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        for step in range(3):
            trial.report(x * step, step)
        if trial.number == 1:
            raise ValueError("no luck")
        return x

    study = run(sqlite_url, objective, 2)
    tuner.exporters.export("s", "wandb", str(tmp_path), storage=sqlite_url)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"), key=lambda one: one.name[-1])
    assert [one.name[-2:] for one in runs] == ["-0", "-1"]
    for trial, folder in zip(study.trials, runs, strict=True):
        read = records(folder)
        (about,) = [one.run for one in read if one.WhichOneof("record_type") == "run"]
        config = {item.key: json.loads(item.value_json) for item in about.config.update}
        assert (about.run_group, config["x"]) == ("s", trial.params["x"])
        rows = [
            {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in one.history.item}
            for one in read
            if one.WhichOneof("record_type") == "history"
        ]
        assert [(row["_step"], row["report"]) for row in rows] == list(trial.intermediate_values.items())
        (code,) = [one.exit.exit_code for one in read if one.WhichOneof("record_type") == "exit"]
        assert code == trial.number
    before = {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*.wandb")}
    tuner.exporters.export("s", "wandb", str(tmp_path), storage=sqlite_url)
    assert {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*.wandb")} == before


def test_what_a_service_takes_is_said(mlflow: Any, sqlite_url: str, tmp_path: Path) -> None:
    run(sqlite_url, lambda trial: trial.suggest_float("x", 0, 1), 1)
    with pytest.raises(BadInput, match=r"no tracking URI that MLflow takes .* give one such as sqlite:///"):
        tuner.exporters.export("s", "mlflow", str(tmp_path / "folder"), storage=sqlite_url)


def test_without_a_key_the_offline_way_is_named(
    wandb: Any, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    run(sqlite_url, lambda trial: trial.suggest_float("x", 0, 1), 1)
    with pytest.raises(BadInput, match=r"wandb login.*WANDB_MODE=offline"):
        tuner.exporters.export("s", "wandb", str(tmp_path), storage=sqlite_url)
