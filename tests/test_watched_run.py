"""A run on Ray as others watch it: live exports and metrics while a trial trains, and a real Prometheus.

It answers every query of the Grafana board.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import tuner

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
BOARD = ROOT / "docs" / "grafana" / "tuner.json"
PROMETHEUS = Path(os.environ.get("TUNER_PROMETHEUS") or Path(sys.prefix) / "prometheus/usr/bin/prometheus")

OBJECTIVE = """
import time
from pathlib import Path

HERE = Path(__file__).parent


def objective(trial):
    x = trial.suggest_float("x", 1, 2)
    for step in range(3):
        trial.report(x + step, step)
    while trial.number in (0, 2) and not (HERE / f"go-{trial.number}").exists():
        trial.should_prune()
        time.sleep(0.02)
    if trial.number == 1:
        raise ValueError("no luck")
    trial.report(x, 3)
    return x
"""


def until(what: Callable[[], Any], bound: float = 200) -> Any:
    deadline = time.monotonic() + bound
    while not (found := what()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


class Run:
    """``tuner run`` of four trials: number 1 fails, 0 and 2 wait until they are let go.

    Attributes:
        metrics: where they are served.
    """

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._folder = folder
        self._process = process
        self.storage = f"sqlite:///{folder}/tuner.db"
        self.metrics = until(lambda: re.search(r"metrics at (\S+)", self.said()))[1]
        until(self._answers)

    def said(self) -> str:
        said = (self._folder / "driver.log").read_text()
        assert self._process.poll() in (None, 0), said
        return said

    def _answers(self) -> bool:
        """It says where before it listens there for good."""
        self.said()
        with contextlib.suppress(OSError):
            return bool(self.samples())
        return False

    def let_go(self, number: int) -> None:
        (self._folder / f"go-{number}").touch()

    def samples(self) -> dict[tuple[str, str], float]:
        """By name and, where it has one beside the study, label."""
        with urllib.request.urlopen(self.metrics, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return {
            (one.name, next((text for key, text in one.labels.items() if key != "study"), "")): one.value
            for family in families
            for one in family.samples
        }

    def end(self) -> None:
        assert self._process.wait(120) == 0, self.said()


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[Run]:
    (folder / "train.py").write_text(OBJECTIVE)
    words = ["run", "train.py", "--study", "s", "--trials", "4", "--max-concurrent", "1", "--no-progress"]
    words += ["--storage", f"sqlite:///{folder}/tuner.db", "--metrics-port", "0", *options]
    with (folder / "driver.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
        try:
            yield Run(folder, process)
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.filterwarnings("ignore")  # of the warnings of MLflow's own code
def test_exports_and_metrics_follow_a_trial_that_trains_on_ray(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def curve(number: int) -> list[int]:
        """As TensorBoard reads it."""
        folder = tmp_path / "runs" / "s" / f"trial-{number:05}"
        read = event_accumulator.EventAccumulator(str(folder)).Reload() if folder.exists() else None
        there = read is not None and "report" in read.Tags()["scalars"]
        return [one.step for one in read.Scalars("report")] if there else []

    def logged(number: int) -> tuple[str, list[int]]:
        """As MLflow has it."""
        client = mlflow.MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("s")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        for one in runs:
            if one.data.tags.get("tuner.trial") == str(number):
                history = client.get_metric_history(one.info.run_id, "report")
                return one.info.status, sorted(point.step for point in history)
        return "", []

    with running(tmp_path, "--export", f"tensorboard={tmp_path}/runs", "--export", f"mlflow={uri}") as run:
        run.let_go(0)
        until(lambda: run.samples().get(("tuner_reports_total", "")) == 10)  # 4 and 3 and 3
        during = run.samples()
        states = {name: during["tuner_trials", name] for name in ("complete", "fail", "running")}
        assert states == {"complete": 1, "fail": 1, "running": 1}
        assert during["tuner_attempts_total", "exception"] == 1
        assert during["tuner_slots_busy", ""] == during["tuner_ranks_busy", ""] == 1
        until(lambda: curve(2) == [0, 1, 2])
        until(lambda: logged(2) == ("RUNNING", [0, 1, 2]))
        assert run.samples()["tuner_trials", "running"] == 1, "it was seen while it ran"
        run.let_go(2)
        run.end()
        with pytest.raises(OSError, match="refused"):
            run.samples()
        assert [trial.state.name for trial in tuner.load_study("s", storage=run.storage).trials] == [
            *("COMPLETE", "FAIL", "COMPLETE", "COMPLETE")
        ]
    assert [len(curve(number)) for number in range(4)] == [4, 3, 4, 4]
    assert [logged(number)[0] for number in range(4)] == ["FINISHED", "FAILED", "FINISHED", "FINISHED"]
    assert logged(2)[1] == [0, 1, 2, 3]


class Prometheus:
    """A server that reads one run's metrics twice a second."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **query: str) -> Any:
        """What its HTTP API answers; None until it is ready."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            raise AssertionError(f"{query}: {error.read().decode()}") from error
        except urllib.error.URLError:
            return None

    def rows(self, expression: str) -> list[dict[str, Any]]:
        answer = self.get("query", query=expression)
        return answer["result"] if answer else []


@contextlib.contextmanager
def prometheus(folder: Path, metrics: str) -> Iterator[Prometheus]:
    target = urllib.parse.urlsplit(metrics).netloc
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "scrape_configs": [{"job_name": "tuner", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.json").write_text(json.dumps(config))  # which is YAML
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen(
            [
                str(PROMETHEUS),
                f"--config.file={folder}/prometheus.json",
                f"--storage.tsdb.path={folder}/prometheus",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield Prometheus(f"http://{address}")
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.skipif(not PROMETHEUS.exists(), reason="Prometheus is not installed: make test-integrations")
def test_prometheus_answers_every_query_of_the_board(tmp_path: Path) -> None:
    board = json.loads(BOARD.read_text())
    targets = [target for panel in board["panels"] for target in panel["targets"]]

    def answered(target: dict[str, Any]) -> list[dict[str, Any]]:
        """Numbers, and not those of an empty histogram."""
        rows = server.rows(target["expr"].replace("$study", "s"))
        return rows if rows and all(math.isfinite(float(row["value"][1])) for row in rows) else []

    with running(tmp_path) as run, prometheus(tmp_path, run.metrics) as server:
        until(lambda: server.rows('tuner_trials{state="running"} == 1'))  # so that it sees what changes after
        run.let_go(0)
        until(lambda: server.rows('tuner_trials{state="fail"} == 1'))
        with urllib.request.urlopen(run.metrics, timeout=10) as text:
            tool = [str(PROMETHEUS.with_name("promtool")), "check", "metrics"]
            checked = subprocess.run(tool, input=text.read(), capture_output=True, timeout=60, check=False)
        assert (checked.returncode, checked.stderr.decode()) == (0, "")
        for target in targets:
            rows = until(lambda target=target: answered(target))
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert all(named <= row["metric"].keys() for row in rows), target["expr"]
        assert server.get("label/study/values", **{"match[]": "tuner_trials"}) == ["s"]
        outcomes = server.rows("tuner_attempts_total > 0")
        assert {row["metric"]["outcome"]: row["value"][1] for row in outcomes} == {
            "complete": "1",
            "exception": "1",
        }
        (up,) = server.rows("up")
        assert up["value"][1] == "1"
        run.let_go(2)
        run.end()
    shutil.rmtree(tmp_path / "prometheus")
