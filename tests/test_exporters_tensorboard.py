"""TensorBoard's files, read by TensorBoard's own code: scalars, and what the HParams page asks for."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

import tuner
from tests.test_exporters import states
from tuner.exporters import live_export

pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'tuner[tensorboard]'")

from tensorboard.backend.event_processing import (
    data_provider,
    event_accumulator,
    plugin_event_multiplexer,
)
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams import (
    api_pb2,
    backend_context,
    get_experiment,
    list_session_groups,
)

__all__ = ["states"]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads in the folder of a run."""
    read = event_accumulator.EventAccumulator(str(run)).Reload()
    tensors = read.Tags()["scalars"]
    return {tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in tensors}


class HParams:
    """The backend of TensorBoard's HParams page."""

    def __init__(self, folder: Path) -> None:
        multiplexer = plugin_event_multiplexer.EventMultiplexer()
        multiplexer.AddRunsFromDirectory(str(folder)).Reload()
        provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
        self.context = backend_context.Context(type("TB", (), {"data_provider": provider})())
        self.request = RequestContext()

    @property
    def metadata(self) -> Any:
        return self.context.hparams_metadata(self.request, "")

    def experiment(self) -> Any:
        read = get_experiment.Handler(self.request, self.context, "", api_pb2.GetExperimentRequest())
        return read.run()

    def groups(self, **wanted: Any) -> Any:
        request = api_pb2.ListSessionGroupsRequest(
            start_index=0, slice_size=1000, allowed_statuses=[1, 2, 3, 0], **wanted
        )
        return list_session_groups.Handler(self.request, self.context, "", request).run()


def files(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def test_each_trial_is_a_run_with_its_curves(states: str, tmp_path: Path) -> None:
    where = tuner.exporters.export("states", "tensorboard", str(tmp_path), storage=states)
    folder = tmp_path / "states"
    assert where == str(folder)
    assert sorted(one.name for one in folder.iterdir() if one.is_dir()) == [
        f"trial-{n:05}" for n in range(10)
    ]
    first = scalars(folder / "trial-00000")
    assert [step for step, _ in first["report"]] == [0, 1, 2, 3]
    assert first["objective/value"][0] == (3, pytest.approx(0.25))
    assert first["metrics/train/loss"] == [(0, 1.0)]
    assert first["constraint/size"] == [(3, -5.0)]
    assert [step for step, _ in scalars(folder / "trial-00006")["report"]] == [0, 1, 2, 3]  # retried
    assert scalars(folder / "trial-00007")["report"][1] == (1, math.inf)
    assert "objective/value" not in scalars(folder / "trial-00004")


def test_the_hparams_page_has_its_columns_axes_and_points(states: str, tmp_path: Path) -> None:
    tuner.exporters.export("states", "tensorboard", str(tmp_path), storage=states)
    page = HParams(tmp_path / "states")
    experiment = page.experiment()
    infos = {one.name: one for one in experiment.hparam_infos}
    assert (infos["lr"].domain_interval.min_value, infos["lr"].domain_interval.max_value) == (1e-5, 1e-1)
    assert [one.string_value for one in infos["optimizer"].domain_discrete.values] == ["adam", "sgd", "None"]
    assert [one.name.tag for one in experiment.metric_infos] == ["objective/value"]
    groups = page.groups().session_groups
    assert len(groups) == 10
    values = {
        one.sessions[0].name: {value.name.tag: value.value for value in one.metric_values} for one in groups
    }
    study = optuna.load_study(study_name="states", storage=states)
    for trial in study.trials:
        got = values[f"trial-{trial.number:05}"].get("objective/value")
        assert got == (pytest.approx(trial.value) if trial.value is not None else None)
    params = {one.sessions[0].name: one.hparams for one in groups}
    assert params["trial-00000"]["lr"].number_value == study.trials[0].params["lr"]
    statuses = {one.sessions[0].name: one.sessions[0].status for one in groups}
    assert statuses["trial-00000"] == api_pb2.STATUS_SUCCESS
    assert statuses["trial-00004"] == api_pb2.STATUS_FAILURE
    assert statuses["trial-00008"] == api_pb2.STATUS_UNKNOWN  # it runs


def test_an_infinite_value_does_not_flatten_the_axes(sqlite_url: str, tmp_path: Path) -> None:
    study = optuna.create_study(study_name="two", storage=sqlite_url, directions=["minimize", "minimize"])
    study.set_metric_names(["loss", "seconds"])
    study.tell(study.ask({"n": optuna.distributions.IntDistribution(1, 9)}), [math.inf, 2.0])
    tuner.exporters.export("two", "tensorboard", str(tmp_path), storage=sqlite_url)
    assert scalars(tmp_path / "two" / "trial-00000") == {"objective/seconds": [(0, 2.0)]}
    page = HParams(tmp_path / "two")
    assert [one.display_name for one in page.experiment().metric_infos] == ["loss", "seconds"]


def test_an_export_that_is_repeated_changes_nothing(states: str, tmp_path: Path) -> None:
    tuner.exporters.export("states", "tensorboard", str(tmp_path), storage=states)
    before = files(tmp_path)
    stamps = {one: one.stat().st_mtime_ns for one in tmp_path.rglob("*")}
    tuner.exporters.export("states", "tensorboard", str(tmp_path), storage=states)
    assert files(tmp_path) == before
    finished = [one for one in stamps if one.is_file()]
    assert [one.stat().st_mtime_ns for one in finished] == [stamps[one] for one in finished]


def test_live_the_curve_grows_and_a_retry_takes_back_what_it_superseded(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_export, "PACE", 0.01)
    run_folder = tmp_path / "s" / "trial-00000"
    seen = []

    def reported() -> list[tuple[int, float]]:
        return scalars(run_folder).get("report", []) if run_folder.is_dir() else []

    def wait_for(points: list[tuple[int, float]]) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if reported() == points:
                seen.append(len(points))
                return
            time.sleep(0.01)
        raise AssertionError(f"{reported()} instead of {points}")

    def objective(trial: tuner.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        saved = trial.load_checkpoint()
        begin = saved.step + 1 if saved else 0
        for step in range(begin, 4):
            trial.report(step + trial.attempt / 4, step)
            wait_for([(k, k + (1 if k <= 1 else trial.attempt) / 4) for k in range(step + 1)])
            if step == 1:
                trial.save_checkpoint({}, 1)
            if step == 2 and trial.attempt == 1:
                raise ConnectionError
        return x

    study = tuner.create_study("s", storage=sqlite_url, sampler="random", seed=1)
    tuner.optimize(
        study,
        objective,
        n_trials=1,
        executor="inline",
        progress=False,
        retry=tuner.Retry(retry_on=(ConnectionError,), backoff=0.0),
        callbacks=[tuner.exporters.live("tensorboard", str(tmp_path))],
    )
    assert seen == [1, 2, 3, 3, 4]
    assert len(list(run_folder.iterdir())) == 1
    before = files(tmp_path)
    tuner.exporters.export("s", "tensorboard", str(tmp_path), storage=sqlite_url)
    assert files(tmp_path) == before
