"""Weights & Biases: a run for each finished trial, grouped by study.

The project is ``$WANDB_PROJECT``, else ``tuner``; ``WANDB_MODE=offline`` keeps everything in a folder, which
``wandb sync`` uploads later. A run takes no point back, so a trial goes there once it has ended. A
finished run's folder keeps the digest of its trial: to export again replaces what has changed, and
a run of the same id replaces the one that the server has.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import wandb

from storage.exports import ExportedStudy, ExportedTrial
from tuner.errors import BadInput
from tuner.exporters.base import Exporter
from tuner.exporters.series import series

__all__ = ["Wandb"]

_MARK = "tuner.digest"


class Wandb(Exporter):
    """The output is the folder that holds W&B's own ``wandb`` folder; default: the current one."""

    def __init__(self, output: str | None) -> None:
        super().__init__(output)
        self._folder = Path(output or ".")
        if self._folder.exists() and not self._folder.is_dir():
            raise BadInput(f"output {output}: is a file; name a folder for W&B")
        self.where = str(self._folder / "wandb")
        self._used = False

    def begin(self, study: ExportedStudy) -> None:
        self._study = study
        key = study.uid or hashlib.blake2b(study.name.encode(), digest_size=8).hexdigest()
        self._key = key[:16]
        self._folder.mkdir(parents=True, exist_ok=True)

    def trial(self, trial: ExportedTrial) -> None:
        if not trial.finished:
            return
        run_id = f"{self._key}-{trial.number}"
        digest = hashlib.blake2b(repr(trial).encode("utf-8", "surrogatepass")).hexdigest()
        before = list((self._folder / "wandb").glob(f"*run-*-{run_id}"))
        if any(_mark(one) == digest for one in before):
            return
        for old in before:
            shutil.rmtree(old)
        self._used = True
        run = self._begun(run_id, trial)
        _fill(run, self._study, trial)
        place = Path(run.dir).parent
        run.finish(exit_code=1 if trial.state == "FAIL" else 0)
        (place / _MARK).write_text(digest)

    def _begun(self, run_id: str, trial: ExportedTrial) -> wandb.Run:
        try:
            return wandb.init(
                project=os.environ.get("WANDB_PROJECT", "tuner"),
                dir=str(self._folder),
                id=run_id,
                name=f"{self._study.name} {trial.number}",
                group=self._study.name[:128],
                job_type="trial",
                tags=[trial.state],
                config={name: _value(one) for name, one in trial.params.items()},
                reinit="create_new",
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True),
            )
        except wandb.errors.UsageError as error:
            raise BadInput(
                f"W&B takes no run: {str(error).partition(chr(10))[0]} To keep all in a folder instead, "
                "set WANDB_MODE=offline"
            ) from None

    def close(self) -> None:
        if self._used:
            wandb.teardown()


def _fill(run: Any, study: ExportedStudy, trial: ExportedTrial) -> None:
    """Curves by step; what the trial came to is the run's summary."""
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    final: dict[str, Any] = {}
    for tag, points in series(study.objectives, trial):
        if tag.startswith(("objective/", "constraint/")):
            final[tag] = points[0][1]
            continue
        for step, value in points:
            rows[step][tag] = value
    for step in sorted(rows):
        run.log(rows[step], step=step)
    run.summary.update(final | {"state": trial.state, "attempts": trial.attempts, "reason": trial.reason})
    run.summary.update({f"attr.{name}": _value(value) for name, value in trial.user_attrs.items()})


def _value(value: Any) -> Any:
    """As W&B keeps it: JSON, where an infinity is text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _mark(run: Path) -> str:
    file = run / _MARK
    return file.read_text() if file.is_file() else ""
