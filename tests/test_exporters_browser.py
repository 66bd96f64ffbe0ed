"""What people see of an export: TensorBoard and MLflow in a real Chromium. $TUNER_PICTURES keeps pictures."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import tuner
from tests.benchmarks.browser import FLAGS
from tests.test_exporters import states

__all__ = ["states"]

pytestmark = [pytest.mark.browser, pytest.mark.integration, pytest.mark.timeout(900)]

SERVER = Path(os.environ.get("TUNER_MLFLOW") or Path(sys.prefix) / "mlflow" / "bin" / "mlflow")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextlib.contextmanager
def serving(command: Sequence[str], url: str, folder: Path) -> Iterator[None]:
    """A server, until it answers; it goes with all its processes."""
    with (folder / "server.log").open("w") as out:
        server = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    break
            except OSError:
                said = (folder / "server.log").read_text()
                assert server.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.2)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(30)


@pytest.fixture
def page(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        found = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
        found.set_default_timeout(120_000)
        yield found
        browser.close()


def picture(page: Any, name: str) -> None:
    folder = os.environ.get("TUNER_PICTURES")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png")


def test_tensorboard_shows_table_parallel_coordinates_and_scatter(
    states: str, tmp_path: Path, page: Any
) -> None:
    folder = tuner.exporters.export("states", "tensorboard", str(tmp_path / "runs"), storage=states)
    program = shutil.which("tensorboard", path=str(Path(sys.executable).parent))
    assert program is not None, "pip install 'tuner[tensorboard]'"
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [program, "--logdir", str(Path(folder).absolute()), "--port", str(port), "--host", "127.0.0.1"]
    with serving(command, address, tmp_path):
        page.goto(f"{address}/#hparams")
        for number in range(10):
            page.get_by_text(f"trial-{number:05}").first.wait_for()
        picture(page, "tensorboard-table")
        page.get_by_text("Parallel Coordinates View").first.click()
        lines = page.locator("tf-hparams-parallel-coords-plot path[d^='M']")
        lines.nth(5).wait_for(state="attached")
        axes = page.locator("tf-hparams-parallel-coords-plot text").all_text_contents()
        assert {"lr", "optimizer", "value"} <= {one.strip() for one in axes}
        picture(page, "tensorboard-parallel-coordinates")
        page.get_by_text("Scatter Plot Matrix View").first.click()
        points = page.locator("tf-hparams-scatter-plot-matrix-plot circle")
        points.nth(5).wait_for(state="attached")
        picture(page, "tensorboard-scatter")


@pytest.mark.skipif(not SERVER.exists(), reason="MLflow's server is not installed: make test-integrations")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_shows_the_experiment_and_the_curve_of_a_trial(states: str, tmp_path: Path, page: Any) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tuner.exporters.export("states", "mlflow", uri, storage=states)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("states").experiment_id
    runs = client.search_runs([experiment])
    (child,) = [one.info.run_id for one in runs if one.data.tags.get("tuner.trial") == "6"]
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [str(SERVER), "server", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    with serving([*command, "--workers", "1"], f"{address}/health", tmp_path):
        page.goto(f"{address}/#/experiments/{experiment}/runs")
        page.get_by_text("states").first.wait_for()
        page.get_by_role("link", name="states").first.wait_for()
        picture(page, "mlflow-experiment")
        page.goto(f"{address}/#/experiments/{experiment}/runs/{child}/model-metrics")
        page.get_by_text("trial 6").first.wait_for()
        page.locator(".js-plotly-plot .scatterlayer path.js-line").first.wait_for(state="attached")
        picture(page, "mlflow-run")
