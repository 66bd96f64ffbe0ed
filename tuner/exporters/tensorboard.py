"""TensorBoard: a run for each trial with its scalars, and the HParams plug-in filled in.

The files are written with TensorBoard's own protocol buffers, so that neither TensorFlow nor torch is
needed. A finished trial is one file whose bytes depend on nothing but the trial: to export it again
changes nothing. One that runs is appended to, and written anew when a retry took points back; each
file begins with the mark by which TensorBoard forgets what it knew of the run.

The store keeps no time of a report: all points of a trial carry the time of its start.
"""

from __future__ import annotations

import datetime as dt
import io
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.summary.writer.record_writer import RecordWriter

from storage.exports import ExportedStudy, ExportedTrial
from storage.views import CurvePoint
from tuner.errors import BadInput
from tuner.exporters.base import Exporter
from tuner.exporters.series import objective, plain, safe, series

__all__ = ["TensorBoard"]

_STATUS = {
    "COMPLETE": api_pb2.STATUS_SUCCESS,
    "PRUNED": api_pb2.STATUS_SUCCESS,
    "FAIL": api_pb2.STATUS_FAILURE,
}


class TensorBoard(Exporter):
    """The output is a folder: ``tensorboard --logdir OUTPUT/STUDY`` shows the study."""

    takes = "running"

    def __init__(self, output: str | None) -> None:
        if output is None:
            raise BadInput("tensorboard needs a folder: --output FOLDER, or --export tensorboard=FOLDER")
        super().__init__(output)
        self._root = Path(output)
        if self._root.exists() and not self._root.is_dir():
            raise BadInput(f"output {output}: is a file; name a folder for TensorBoard")
        self._grown: dict[int, _Growing] = {}  # of the trials that run

    def begin(self, study: ExportedStudy) -> None:
        self._study = study
        self._folder = self._root / safe(study.name)
        self.where = str(self._folder)
        _write(self._folder, study.created_at, _framed(_experiment(study)))

    def trial(self, trial: ExportedTrial) -> None:
        folder = self._folder / f"trial-{trial.number:05}"
        growing = self._grown.get(trial.number)
        points = _shown(self._study.objectives, trial)
        if trial.finished or growing is None or not growing.goes_on(trial, points):
            file = _write(folder, trial.started_at, _framed(_events(trial, points)))
            self._grown[trial.number] = _Growing(file, trial, points)
        else:
            growing.append(trial, points)
        if trial.finished:
            del self._grown[trial.number]


class _Growing:
    """The file of a trial that runs, and what is in it."""

    def __init__(self, file: Path, trial: ExportedTrial, points: Mapping[str, Sequence[CurvePoint]]) -> None:
        self._file = file
        self._params = dict(trial.params)
        self._written = {tag: (len(of), repr(of[-1])) for tag, of in points.items()}

    def goes_on(self, trial: ExportedTrial, points: Mapping[str, Sequence[CurvePoint]]) -> bool:
        """Whether what is written is the beginning of what there is now."""
        return (
            self._file.exists()
            and trial.params == self._params
            and all(
                len(points.get(tag, ())) >= count and repr(points[tag][count - 1]) == last
                for tag, (count, last) in self._written.items()
            )
        )

    def append(self, trial: ExportedTrial, points: Mapping[str, Sequence[CurvePoint]]) -> None:
        new = {tag: of[self._written.get(tag, (0, ""))[0] :] for tag, of in points.items()}
        with self._file.open("ab") as file:
            file.write(_framed(_scalars(_seconds(trial.started_at), new)))
        self._written |= {tag: (len(points[tag]), repr(points[tag][-1])) for tag, of in new.items() if of}


def _write(folder: Path, start: dt.datetime | None, content: bytes) -> Path:
    """The run's one file. One with this content stays; else the name is later than that of those before,
    which go, so that a TensorBoard that is open reads it next.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = sorted(folder.glob("events.out.tfevents.*.tuner"))
    if before and before[-1].stat().st_size == len(content) and before[-1].read_bytes() == content:
        return before[-1]
    turn = int(before[-1].name.split(".")[-2]) + 1 if before else 0
    file = folder / f"events.out.tfevents.{int(_seconds(start)):010}.{turn:06}.tuner"
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".new-")
    try:
        with open(descriptor, "wb") as out:
            out.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)
    for old in before:
        old.unlink(missing_ok=True)
    return file


def _framed(events: Iterator[Event]) -> bytes:
    out = io.BytesIO()
    writer = RecordWriter(out)
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))
    return out.getvalue()


def _beginning(at: float) -> Iterator[Event]:
    yield Event(wall_time=at, file_version="brain.Event:2")
    yield Event(wall_time=at, session_log=SessionLog(status=SessionLog.START))


def _events(trial: ExportedTrial, points: Mapping[str, Sequence[CurvePoint]]) -> Iterator[Event]:
    """Everything that TensorBoard is told of a trial."""
    at = _seconds(trial.started_at)
    yield from _beginning(at)
    start = SessionStartInfo(start_time_secs=at)
    for name, value in sorted(trial.params.items()):
        kept = plain(value)
        field = {bool: "bool_value", str: "string_value"}.get(type(kept), "number_value")
        setattr(start.hparams[name], field, kept)
    yield _hparams(at, metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))
    yield from _scalars(at, points)
    if trial.finished:
        end = SessionEndInfo(status=_STATUS[trial.state], end_time_secs=_seconds(trial.completed_at))
        yield _hparams(at, metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))


def _scalars(at: float, points: Mapping[str, Sequence[CurvePoint]]) -> Iterator[Event]:
    for tag, of in points.items():
        for step, value in of:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            yield Event(wall_time=at, step=step, summary=summary)


def _experiment(study: ExportedStudy) -> Iterator[Event]:
    """What the HParams plug-in's columns and axes are."""
    at = _seconds(study.created_at)
    experiment = api_pb2.Experiment(
        name=study.name,
        description=f"{', '.join(study.directions)}; sampler {study.sampler or 'of its own'}",
        time_created_secs=at,
        hparam_infos=[_hparam(name, drawn) for name, drawn in study.space.items()],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=objective(name)), display_name=name)
            for name in study.objectives
        ],
    )
    yield from _beginning(at)
    yield _hparams(at, metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))


def _hparam(name: str, drawn: Sequence[BaseDistribution]) -> Any:
    """A parameter and its domain: a list of choices, or the interval over all its distributions."""
    info = api_pb2.HParamInfo(name=name, display_name=name)
    choices = [choice for one in drawn if isinstance(one, CategoricalDistribution) for choice in one.choices]
    if not choices:
        info.type = api_pb2.DATA_TYPE_FLOAT64
        info.domain_interval.min_value = min(one.low for one in drawn)  # type: ignore[attr-defined]
        info.domain_interval.max_value = max(one.high for one in drawn)  # type: ignore[attr-defined]
        return info
    kept = list(dict.fromkeys(map(plain, choices)))
    if all(isinstance(one, bool) for one in kept):
        info.type = api_pb2.DATA_TYPE_BOOL
    elif all(isinstance(one, int | float) and not isinstance(one, bool) for one in kept):
        info.type = api_pb2.DATA_TYPE_FLOAT64
    else:
        info.type = api_pb2.DATA_TYPE_STRING
        kept = list(dict.fromkeys(map(str, kept)))
    info.domain_discrete.extend(kept)
    return info


def _hparams(at: float, tag: str, data: HParamsPluginData) -> Event:
    value = Summary.Value(
        tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
    )
    return Event(wall_time=at, summary=Summary(value=[value]))


def _shown(objectives: Sequence[str], trial: ExportedTrial) -> dict[str, Sequence[CurvePoint]]:
    """The points by tag. An objective that is infinite has none: it would flatten the axes of HParams."""
    finals = {objective(name) for name in objectives}
    return {
        tag: points
        for tag, points in series(objectives, trial)
        if tag not in finals or math.isfinite(points[0][1])
    }


def _seconds(stored: dt.datetime | None) -> float:
    return 0.0 if stored is None else stored.replace(tzinfo=dt.UTC).timestamp()
