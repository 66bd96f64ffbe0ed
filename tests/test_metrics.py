"""Prometheus metrics of a run, parsed by Prometheus' own client; the Grafana board that is drawn of them."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import tuner
from storage.latency import BOUNDS, Commits, Latencies
from tuner import driver, metrics
from tuner.cli import main
from tuner.cli import run as run_module
from tuner.outcome import Reason
from tuner.snapshot import Measured

BOARD = Path(__file__).parent.parent / "docs" / "grafana" / "tuner.json"

MEASURED = Measured(
    study='a "b" \\ c\nd',
    states={"COMPLETE": 3, "FAIL": 1, "PRUNED": 0, "RUNNING": 2, "WAITING": 1},
    n_trials=10,
    outcomes={"complete": 3, "exception": 1, "rank_lost": 2},
    reports=40,
    commits=Commits(counts=(1, 2, *([0] * 11), 1, 1), seconds=12.5, last=1_700_000_000.0),
    queues={"writes": 5, "retries": 1, "resources": 0, "enqueued": 1},
    slots=4,
    busy=2,
    ranks=4,
    devices=2,
    away=False,
    best=0.25,
    began=1_699_999_000.0,
    at=1_700_000_001.0,
)


def read(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    assert "secret" not in text
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(family: Any, label: str) -> dict[str, float]:
    return {one.labels[label]: one.value for one in family.samples}


def test_what_is_published_is_served_by_prometheus_conventions() -> None:
    endpoint = metrics.Endpoint("127.0.0.1", 0)
    try:
        assert read(endpoint.url) == {}  # before the run has begun
        endpoint.publish(MEASURED)
        found = read(endpoint.url)
    finally:
        endpoint.close()
    assert {one.labels["study"] for family in found.values() for one in family.samples} == {MEASURED.study}
    assert values(found["tuner_trials"], "state")["complete"] == 3
    outcomes = values(found["tuner_attempts"], "outcome")
    assert outcomes == {**dict.fromkeys(Reason, 0.0), **MEASURED.outcomes}
    assert values(found["tuner_queue_length"], "queue") == MEASURED.queues
    histogram = found["tuner_commit_duration_seconds"]
    buckets = {one.labels["le"]: one.value for one in histogram.samples if one.name.endswith("_bucket")}
    assert (buckets["0.001"], buckets["+Inf"], len(buckets)) == (3, 5, len(BOUNDS) + 1)
    assert found["tuner_store_up"].samples[0].value == 1
    for name, family in found.items():
        assert re.fullmatch(r"tuner_[a-z_]+", name)
        assert family.documentation
        assert (family.type == "counter") == any(one.name.endswith("_total") for one in family.samples)
    unknown = dataclasses.replace(MEASURED, n_trials=None, best=None, commits=Commits())
    names = {one.name for one in metrics.families(unknown)}
    assert not names & {"tuner_trials_budget", "tuner_best_value", "tuner_last_commit_timestamp_seconds"}


def test_latencies_are_counted_by_the_bound_that_they_do_not_exceed() -> None:
    made = Latencies()
    for seconds in (0.0, BOUNDS[0], BOUNDS[0] * 1.01, 1e9):
        made.add(seconds)
    taken = made.taken()
    assert (taken.counts[:2], taken.counts[-1], sum(taken.counts)) == ((2, 1), 1, 4)
    assert taken.last > 0


def test_a_run_serves_what_it_does_and_lets_go_of_the_port(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "FLUSH_EVERY", 0.0)  # it publishes at each turn of its loop
    free = metrics.Endpoint("127.0.0.1", 0)
    free.close()
    url, seen = free.url, []

    def objective(trial: tuner.Trial) -> float:
        x = trial.suggest_float("password", 0, 1)
        for step in range(3):
            trial.report(x, step)
        if trial.number == 1:
            raise ValueError("no luck")
        if trial.number == 3:
            seen.append(read(url))
        return x

    study = tuner.create_study("s", storage=sqlite_url, sampler="random", seed=1)
    tuner.optimize(study, objective, 4, executor="inline", progress=False, metrics_port=free.port)
    (found,) = seen
    states = values(found["tuner_trials"], "state")
    assert states == {"complete": 2, "fail": 1, "pruned": 0, "running": 0, "waiting": 0}
    outcomes = values(found["tuner_attempts"], "outcome")
    assert {reason: count for reason, count in outcomes.items() if count} == {"complete": 2, "exception": 1}
    assert found["tuner_reports"].samples[0].value == 9
    assert (found["tuner_slots"].samples[0].value, found["tuner_slots_busy"].samples[0].value) == (1, 0)
    values_before = [trial.value for trial in study.trials[:3] if trial.value is not None]
    assert found["tuner_best_value"].samples[0].value == min(values_before)
    assert found["tuner_trials_budget"].samples[0].value == 4
    assert not any("password" in str(one) for family in found.values() for one in family.samples)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)


def test_a_port_that_is_taken_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o.py").write_text("def objective(trial): return 1.0\n")
    arguments = ["run", "o.py", "--study", "s", "--trials", "1", "--executor", "inline"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([*arguments, "--metrics-port", str(port)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: metrics cannot be served at 127.0.0.1:{port} (Address already in use)")
    assert err.count("\n") == 1
    for wrong in (["--metrics-port", "70000"], ["--metrics-port", "0", "--metrics-host", "192.0.2.1"]):
        assert main([*arguments, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir() if one.name != "__pycache__"] == ["o.py"]
    assert main([*arguments, "--metrics-port", "0"]) == 0
    assert capsys.readouterr().err.startswith("metrics at http://127.0.0.1:")


def test_the_port_is_held_from_its_check_to_the_end_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o.py").write_text("def objective(trial): return trial.suggest_float('x', 0, 1)\n")
    existing, urls = run_module.existing, []

    def try_to_take_it(*arguments: Any) -> Any:  # between the check of the port and the run
        urls.append(capsys.readouterr().err.removeprefix("metrics at ").strip())
        port = int(urls[0].rpartition(":")[2].partition("/")[0])
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", port))
        return existing(*arguments)

    monkeypatch.setattr(run_module, "existing", try_to_take_it)
    served = ["--executor", "inline", "--metrics-port", "0"]
    assert main(["run", "o.py", "--study", "s", "--trials", "1", *served]) == 0
    assert main(["resume", "s", "--trials", "2", "--metrics-port", "0"]) == 0
    urls.append(capsys.readouterr().err.removeprefix("metrics at ").strip())
    for url in urls:
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(url, timeout=5)


# ---------------------------------------------------------------------- Grafana


def expressions(board: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_the_board_has_what_an_import_requires() -> None:
    board = json.loads(BOARD.read_text())
    assert (board["title"], board["schemaVersion"] >= 36, board["uid"]) == ("Tuner", True, "tuner-study")
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["type"] in ("stat", "gauge", "timeseries")
        assert panel["title"]
        assert {"defaults", "overrides"} <= panel["fieldConfig"].keys()
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        for target in panel["targets"]:
            assert target["refId"]
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_the_board_asks_only_for_metrics_and_labels_that_there_are() -> None:
    board = json.loads(BOARD.read_text())
    samples = [one for family in metrics.families(MEASURED) for one in family.samples]
    labels: dict[str, set[str]] = {}
    for one in samples:
        labels.setdefault(one.name, set()).update(one.labels)
    texts = expressions(board)
    assert texts
    used = set()
    for text in texts:
        names = re.findall(r"\btuner_\w+", text)
        assert names, text
        for name in names:
            assert name in labels, f"{name} of {text!r} is not exported"
            used.add(name)
            known = labels[name] | {"le"}
            assert set(re.findall(r"\{\{(\w+)\}\}", text)) <= known
            assert set(re.findall(r"(\w+)=~?\"", text)) <= known
            assert (
                set(
                    re.findall(r"by \(([^)]*)\)", text) and re.findall(r"by \(([^)]*)\)", text)[0].split(", ")
                )
                <= known
            )
    for panel in board["panels"]:
        for target in panel["targets"]:
            (name, *_) = re.findall(r"\btuner_\w+", target["expr"])
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels[name]
    names = {one.removesuffix("_bucket") for one in labels} - {"tuner_build_info"}
    unused = {one for one in names if not any(one in text for text in texts)}
    assert unused <= {
        "tuner_run_start_timestamp_seconds",
        *(f"tuner_commit_duration_seconds_{x}" for x in ("sum", "count")),
    }
    assert board["templating"]["list"][1]["definition"] == "label_values(tuner_trials, study)"
