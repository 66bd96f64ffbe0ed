"""MLflow: a parent run for the study, below it a run for each trial, and the best trial's checkpoint.

The experiment is ``$MLFLOW_EXPERIMENT_NAME``, else the study's name. Our runs are known by their tags
``tuner.study`` and ``tuner.trial``, so that to export again updates them. Of a trial that was tried
again the run is made anew, since MLflow takes no point back. The store keeps no time of a report:
all points of a trial carry the time of its start.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from storage.exports import ExportedStudy, ExportedTrial
from storage.masking import mask_url
from storage.texts import dumped
from tuner.errors import BadInput
from tuner.exporters.base import Exporter
from tuner.exporters.series import objective, safe, series

__all__ = ["MLflow"]

log = logging.getLogger(__name__)

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it says how it makes its tables

_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
_REFUSED = r"[^\w.\- :/]"  # by MLflow, in names
_LONGEST = 5_000  # characters of a text
_BATCH, _FEW = 1_000, 100  # metrics, and parameters or tags, in one request: MLflow's limits


@dataclass(kw_only=True)
class _Run:
    """A run of ours as MLflow has it; ``points`` by series, of those that were sent from here."""

    run_id: str
    digest: str = ""
    attempts: int = 0
    points: dict[str, int] = field(default_factory=dict)


class MLflow(Exporter):
    """The output is a tracking URI, such as ``sqlite:///mlflow.db`` or ``http://127.0.0.1:5000``."""

    takes = "running"

    def __init__(self, output: str | None) -> None:
        uri = output or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise BadInput(
                "mlflow needs a tracking URI: --output (or --export mlflow=...) sqlite:///mlflow.db or "
                "http://127.0.0.1:5000, or $MLFLOW_TRACKING_URI"
            )
        super().__init__(mask_url(uri))
        self._uri = uri
        self._client: MlflowClient | None = None

    def begin(self, study: ExportedStudy) -> None:
        self._study = study
        if self._client is None:
            client = self._connected()
            self._experiment = self._experiment_of(client, study)
            self._key = study.uid or f"optuna:{study.name}"
            parent, self._runs = self._known(client)
            self._parent = parent or self._made_parent(client, study)
            self._client = client  # last: a server that was away is asked for all of it again

    def trial(self, trial: ExportedTrial) -> None:
        run, digest = self._runs.get(trial.number), _digest(trial)
        if run is not None and run.attempts != trial.attempts:
            self._mlflow.delete_run(run.run_id)
            run = None
        if run is not None and run.digest == digest:
            return
        if run is None:
            run = self._runs[trial.number] = self._made_child(trial)
        self._send(run, trial)
        tags = {"tuner.digest": digest, "tuner.state": trial.state, "tuner.reason": trial.reason}
        tags |= {f"attr.{name}": _text(value) for name, value in trial.user_attrs.items()}
        self._tag(run.run_id, tags)
        if trial.finished:
            self._mlflow.set_terminated(run.run_id, _STATUS[trial.state], _moment(trial.completed_at))
            run.points = {}
        run.digest = digest

    def end(self, study: ExportedStudy) -> None:
        tags = {f"attr.{name}": _text(value) for name, value in study.user_attrs.items()}
        tags |= {"tuner.trials": str(sum(study.states.values()))}
        if study.best is not None and study.best_number is not None:
            tags["tuner.best_trial"] = str(study.best_number)
            best = Metric(objective(study.objectives[0]), study.best, _moment(study.created_at), 0)
            self._mlflow.log_batch(self._parent.run_id, metrics=[best])
            self._bring_checkpoint(study)
        self._tag(self._parent.run_id, tags)
        self._mlflow.set_terminated(self._parent.run_id, "FINISHED", _moment(study.last_activity))

    def close(self) -> None:
        self._client = None

    @property
    def _mlflow(self) -> MlflowClient:
        assert self._client is not None, "begin comes first"
        return self._client

    # ------------------------------------------------------------------ runs

    def _connected(self) -> MlflowClient:
        try:
            return MlflowClient(tracking_uri=self._uri)
        except MlflowException as error:
            why = str(error).partition(". ")[0]
            raise BadInput(
                f"{self.where} is no tracking URI that MLflow takes ({why}); give one such as "
                "sqlite:///mlflow.db or http://127.0.0.1:5000"
            ) from None

    def _experiment_of(self, client: MlflowClient, study: ExportedStudy) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or study.name
        found = client.get_experiment_by_name(name)
        if found is None:
            return str(client.create_experiment(name, artifact_location=_artifacts(self._uri)))
        if found.lifecycle_stage != "active":
            raise BadInput(
                f"MLflow's experiment {name!r} is deleted; restore it, or name another with "
                "$MLFLOW_EXPERIMENT_NAME"
            )
        return str(found.experiment_id)

    def _known(self, client: MlflowClient) -> tuple[_Run | None, dict[int, _Run]]:
        """The study's own run, and those of its trials by number."""
        parent: _Run | None = None
        found: dict[int, _Run] = {}
        token = None
        while True:
            page = client.search_runs(
                [self._experiment], f"tags.`tuner.study` = '{_quoted(self._key)}'", page_token=token
            )
            for one in page:
                tags = one.data.tags
                run = _Run(
                    run_id=one.info.run_id,
                    digest=tags.get("tuner.digest", ""),
                    attempts=int(tags.get("tuner.attempts", 0)),
                )
                if "tuner.trial" in tags:
                    found[int(tags["tuner.trial"])] = run
                else:
                    parent = run
            token = page.token
            if not token:
                return parent, found

    def _made_parent(self, client: MlflowClient, study: ExportedStudy) -> _Run:
        tags = {
            "tuner.study": self._key,
            "tuner.sampler": str(study.sampler),
            "tuner.pruner": str(study.pruner),
            "tuner.directions": ", ".join(study.directions),
            "tuner.seed": str(study.seed),
        }
        made = client.create_run(self._experiment, _moment(study.created_at), tags=tags, run_name=study.name)
        return _Run(run_id=made.info.run_id)

    def _made_child(self, trial: ExportedTrial) -> _Run:
        tags = {
            "tuner.study": self._key,
            "tuner.trial": str(trial.number),
            "tuner.attempts": str(trial.attempts),
            "mlflow.parentRunId": self._parent.run_id,
        }
        made = self._mlflow.create_run(
            self._experiment, _moment(trial.started_at), tags=tags, run_name=f"trial {trial.number}"
        )
        return _Run(run_id=made.info.run_id, attempts=trial.attempts)

    # ------------------------------------------------------------------ what is in them

    def _send(self, run: _Run, trial: ExportedTrial) -> None:
        """Parameters and points; MLflow ignores those that it has."""
        params = (Param(safe(name, _REFUSED), _text(value)) for name, value in trial.params.items())
        for few in _batches(params, _FEW):
            self._mlflow.log_batch(run.run_id, params=few)
        for batch in _batches(_points(self._study, run, trial), _BATCH):
            self._mlflow.log_batch(run.run_id, metrics=batch)
        run.points = {tag: len(points) for tag, points in series(self._study.objectives, trial)}

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        every = (RunTag(safe(name, _REFUSED), value) for name, value in tags.items())
        for few in _batches(every, _FEW):
            self._mlflow.log_batch(run_id, tags=few)

    def _bring_checkpoint(self, study: ExportedStudy) -> None:
        """The best trial's newest checkpoint, as it is on disk, below ``best/``; unless it is there."""
        if not study.checkpoint:
            return
        digest = "-".join(one.digest[:16] for one in study.checkpoint)
        run_id = self._parent.run_id
        if self._mlflow.get_run(run_id).data.tags.get("tuner.checkpoint") == digest:
            return
        for part in study.checkpoint:
            where = f"best/trial-{study.best_number}/step-{part.step}"
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder) / part.path.rstrip("/").rpartition("/")[2]
                try:
                    files, path = fsspec.core.url_to_fs(part.path)
                    files.get(path, str(local), recursive=files.isdir(path))
                except FileNotFoundError:
                    log.warning("export to mlflow: the checkpoint %s is gone", part.path)
                    return
                if local.is_dir():
                    self._mlflow.log_artifacts(run_id, str(local), f"{where}/{local.name}")
                else:
                    self._mlflow.log_artifact(run_id, str(local), where)
        self._tag(run_id, {"tuner.checkpoint": digest})


def _points(study: ExportedStudy, run: _Run, trial: ExportedTrial) -> Iterator[Metric]:
    """Those that were not sent from here yet, all of a series whose points are fewer than were sent."""
    at = _moment(trial.started_at)
    for tag, points in series(study.objectives, trial):
        sent = run.points.get(tag, 0)
        for step, value in points[sent if sent <= len(points) else 0 :]:
            yield Metric(safe(tag, _REFUSED), value, at, step)


def _batches(items: Iterator[Any], size: int) -> Iterator[Sequence[Any]]:
    while batch := list(islice(items, size)):
        yield batch


def _digest(trial: ExportedTrial) -> str:
    """Of everything that is exported of a trial."""
    return hashlib.blake2b(repr(trial).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else dumped(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _moment(stored: dt.datetime | None) -> int:
    """Milliseconds, as MLflow has times."""
    return 0 if stored is None else int(stored.replace(tzinfo=dt.UTC).timestamp() * 1000)


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _artifacts(uri: str) -> str | None:
    """Beside a SQLite file; else where the tracking server says. MLflow's default is the current folder."""
    if not uri.startswith("sqlite:///"):
        return None
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()
    return file.with_name(f"{file.stem}-artifacts").as_uri()
