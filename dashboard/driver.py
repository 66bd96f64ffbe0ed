"""Whether a study is being driven, as the pages say it."""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from dashboard import data
from dashboard.rules.condition import Driver, driver_of
from dashboard.theme import ago, escape, shortened
from storage import owner as owners
from storage.views import StudyDetail, StudyRow

__all__ = [
    "badge",
    "condition",
    "is_driven",
    "is_kept",
    "next_step",
    "now",
    "owner_text",
    "resume_command",
    "retrain_command",
    "storage_option",
]

_MORE = 10  # trials that the suggested budget adds to one that is spent


def now() -> dt.datetime:
    """This moment as the database writes it: naive UTC."""
    return dt.datetime.now(dt.UTC).replace(tzinfo=None)


def condition(row: StudyRow) -> Driver:
    """What is known of a study's driver now."""
    alive = None if row.owner is None else owners.alive(row.owner)
    return driver_of(row.owner is not None, alive, row.renewed_at, now())


def badge(row: StudyRow) -> str:
    """A Markdown badge: running, elsewhere, silent, its driver lost, or idle."""
    match condition(row):
        case "none":
            return ":gray-badge[idle]"
        case "gone":
            return ":red-badge[driver lost]"
        case "silent":
            return f":red-badge[driver silent, last renewed {ago(row.renewed_at)}]"
        case "elsewhere":  # its process cannot be seen, its renewals can
            return f":blue-badge[running elsewhere, renewed {ago(row.renewed_at)}]"
        case "running":
            return ":blue-badge[running]"


def owner_text(row: StudyRow, arguments: Sequence[str]) -> str:
    """Who drives a study, for Markdown: host, process, and the user's command; "" for nobody."""
    if row.owner is None:
        return ""
    who = owners.shown(row.owner)
    command = shlex.join([PurePath(arguments[0]).name, *arguments[1:]]) if arguments else ""
    return escape(shortened(f"{who}: {command}" if command else who, 160))


def is_driven(row: StudyRow) -> bool:
    """Whether a driver may answer: it lives, or is on another host, where nobody here can say."""
    return row.owner is not None and owners.alive(row.owner) is not False


def is_kept(study: StudyDetail) -> bool:
    """Whether the study can be resumed by its name: Tuner has run it, and kept with what settings."""
    return study.seed is not None and bool(study.settings)


def next_step(study: StudyDetail) -> tuple[str, str]:
    """How a study that nobody drives goes on: in words, and the command that does it."""
    done = study.finished
    if not is_kept(study):
        said = "Tuner has not run it yet. To go on with it:" if study.states else "To start it:"
        return said, resume_command(study)
    if study.n_trials and done >= study.n_trials:
        return "To go on with a larger budget:", f"{resume_command(study)} --trials {done + _MORE}"
    return "To go on, from the checkpoints of what was interrupted, if anything was:", resume_command(study)


def resume_command(study: StudyDetail) -> str:
    """The command that goes on with a study; names are quoted for a shell."""
    if not is_kept(study):
        return f"tuner run FILE.py --study {shlex.quote(study.name)}{storage_option()} --trials 100"
    return f"tuner resume {shlex.quote(study.name)}{storage_option()}"


def retrain_command(study: StudyDetail) -> str:
    """The command that trains the best trial's parameters once more, on its own."""
    winner = shlex.quote(f"@{study.name}:best")
    return f"tuner run {_target(study.objective or {})} --params {winner}{storage_option()}"


def _target(objective: Mapping[str, Any]) -> str:
    """What ``tuner run`` was given: a file, or an external program; FILE.py where that is not known."""
    if objective.get("file"):
        return shlex.quote(f"{objective['file']}:{objective['name']}")
    given = dict(objective.get("arguments", {}))
    if "command" not in given:
        return "FILE.py"
    given["param"] = [f"{name}={drawn_from}" for name, drawn_from in given.pop("params", {}).items()]
    words = []
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            words += [option] if one is True else [option, str(one)]
    return shlex.join(words)


def storage_option() -> str:
    """What a command needs to reach this database, without a password."""
    return f" --storage {shlex.quote(data.database_name())}"
