"""An export while a study runs, in a thread of its own that can neither slow down nor fail the run.

The thread reads the store, not the driver: what it has not exported yet waits there, so nothing has
to be queued, a slow exporter gets what a trial has come to since its last look, and a resumed run
catches up with what the one before it left. It rests four times as long as it computed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import optuna
from optuna.trial import FrozenTrial

import storage
from storage import exports
from storage.exports import ExportedStudy, ExportedTrial
from storage.masking import mask_url
from tuner.exporters import once
from tuner.exporters.base import Exporter, make

__all__ = ["Live", "live"]

log = logging.getLogger(__name__)

PACE = 1.0  # seconds between looks at the store
REST = 4.0  # seconds of rest for each second that the thread computed
IN_A_ROW = 3  # failures after which a look ends: the other program is probably away
PATIENCE = 30.0  # seconds between looks at most while it fails
PARTING = 30.0  # seconds at the end of a run for what is left


def live(form: str, output: str | None = None) -> Live:
    """A callback for ``tuner.optimize`` that exports the study while it runs.

    Args:
        form, output: as for :func:`tuner.exporters.export`.

    Raises:
        BadInput: no such exporter, a package is missing, or the output cannot be used.

    Example:
        >>> callbacks = [tuner.exporters.live("tensorboard", "runs")]
        >>> tuner.optimize(study, objective, n_trials=100, callbacks=callbacks)  # doctest: +SKIP
    """
    return Live(form, output)


class Live:
    """See :func:`live`. One object can be used for several runs, one after the other."""

    def __init__(self, form: str, output: str | None) -> None:
        self.form = form
        self.output = output
        self._pump: Pump | None = None
        make(form, output).close()

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As a callback of Optuna's; its thread looks by itself."""

    def begin(self, database: str, name: str) -> None:
        """A run begins.

        Args:
            database: URL, with its password.
            name: of the study.
        """
        self._pump = Pump(make(self.form, self.output), self.form, database, name)
        self._pump.start()

    def close(self) -> None:
        """The run has ended: export what is left, within some seconds."""
        if self._pump is not None:
            self._pump.stop()
            self._pump = None


class Pump:
    """The thread of one run.

    Args:
        form: the exporter's name, for messages.
    """

    def __init__(self, exporter: Exporter, form: str, database: str, name: str) -> None:
        self._exporter = exporter
        self._form = form
        self._url = database
        self._name = name
        self._study: ExportedStudy | None = None
        self._last = 0  # the highest trial id seen
        self._waiting: set[int] = set()  # trials that are unfinished, or could not be exported yet
        self._seen: dict[int, tuple[object, ...]] = {}  # of trials that run, what was exported of them
        self._failing = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tuner-export-{form}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Export what is left; give up after some seconds, and say so."""
        self._ending.set()
        self._thread.join(PARTING)
        if self._thread.is_alive():
            self._say(f"was not done within {PARTING:g} s")

    def _run(self) -> None:
        pause = 0.0
        try:
            database = storage.Database(self._url, create=False, read_only=True)
        except Exception as error:
            self._failed(error)
            return
        try:
            while not self._ending.wait(pause):
                computed = time.thread_time()
                if self._exporter.takes != "end":
                    self._look(database)
                rest = REST * (time.thread_time() - computed)
                pause = max(PACE, rest, min(PATIENCE, 4 * pause) if self._failing else 0.0)
            if not self._finish(database):
                self._say("is not complete")
        finally:
            try:
                self._exporter.close()
            except Exception as error:
                log.debug("exporter %s: close failed: %s", self._form, error)
            database.dispose()

    def _look(self, database: storage.Database) -> bool:
        """Export what is new; False where something could not be."""
        failures = 0
        try:
            ids = self._wanted(database)
            for trial in exports.trials(database, self._known(database), ids):
                computed = time.thread_time()
                try:
                    self._export(database, trial)
                    failures = 0
                except Exception as error:
                    self._failed(error)
                    failures += 1
                    if failures == IN_A_ROW:
                        return False
                self._ending.wait(REST * (time.thread_time() - computed))
        except Exception as error:
            self._failed(error)
            return False
        if not failures and self._failing:
            self._failing = False
            log.info("export to %s works again", self._form)
        return not failures

    def _wanted(self, database: storage.Database) -> list[int]:
        """Ids of the trials to look at; a finished one is looked at until it has been exported."""
        marks = exports.marks(database, self._known(database), self._last)
        self._waiting |= marks.keys()
        self._last = max([self._last, *marks])
        if self._exporter.takes == "running" or self._ending.is_set():
            return sorted(self._waiting)
        return sorted(self._waiting - {one for one, finished in marks.items() if not finished})

    def _known(self, database: storage.Database) -> ExportedStudy:
        if self._study is None:
            study = exports.study(database, self._name)
            self._exporter.begin(study)
            self._study = study
        return self._study

    def _export(self, database: storage.Database, trial: ExportedTrial) -> None:
        """Give a trial to the exporter, unless it has that already."""
        if not trial.finished and self._exporter.takes == "finished":
            return
        now = tuple(_extent(trial))
        if self._seen.get(trial.trial_id) != now:
            if any(one not in self._known(database).space.get(name, ()) for name, one in _drawn(trial)):
                self._study = None
                self._known(database)
            self._exporter.trial(trial)
            self._seen[trial.trial_id] = now
        if trial.finished:
            self._waiting.discard(trial.trial_id)
            self._seen.pop(trial.trial_id, None)

    def _finish(self, database: storage.Database) -> bool:
        try:
            if self._exporter.takes == "end":
                once.run(database, self._name, self._exporter)
                return True
            complete = self._look(database)
            self._exporter.end(exports.study(database, self._name))
        except Exception as error:
            self._failed(error)
            return False
        return complete

    def _failed(self, error: Exception) -> None:
        """Say the first failure; the others are the same one, most of the time."""
        text = mask_url(" ".join(str(error).split()))[:300]
        level = logging.DEBUG if self._failing else logging.WARNING
        self._failing = True
        log.log(level, "export to %s fails (%s: %s); the run goes on", self._form, type(error).__name__, text)

    def _say(self, what: str) -> None:
        log.warning(
            "export to %s %s; 'tuner export %s --format %s' brings the rest there",
            *(self._form, what, self._name, self._form),
        )


def _extent(trial: ExportedTrial) -> Iterator[object]:
    """What changes whenever a trial does, without its points."""
    yield from (trial.state, trial.attempts, len(trial.params), len(trial.user_attrs), trial.constraints)
    yield len(trial.reports)
    yield repr(trial.reports[-1:])
    yield sum(map(len, trial.metrics.values()))


def _drawn(trial: ExportedTrial) -> Iterator[tuple[str, object]]:
    yield from trial.distributions.items()
