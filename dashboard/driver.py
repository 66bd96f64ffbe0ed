"""Whether a study is being driven, as the pages say it."""

from __future__ import annotations

import shlex

from dashboard import data
from dashboard.theme import ago
from storage import owner as owners
from storage.views import StudyRow

__all__ = ["badge", "finished", "resume_command", "storage_option"]


def badge(row: StudyRow) -> str:
    """A Markdown badge: running, its driver lost, or idle."""
    if row.owner is None:
        return ":gray-badge[idle]"
    alive = owners.alive(row.owner)
    if alive is False:
        return ":red-badge[driver lost]"
    if alive is None:  # another host: its process cannot be seen, its renewals can
        return f":blue-badge[driven elsewhere, renewed {ago(row.renewed_at)}]"
    return ":blue-badge[running]"


def finished(row: StudyRow) -> int:
    """Trials that count against the budget."""
    return sum(row.states.get(state, 0) for state in ("COMPLETE", "PRUNED", "FAIL"))


def resume_command(row: StudyRow) -> str:
    """The command that goes on with a study; names are quoted for a shell."""
    return f"tuner resume {shlex.quote(row.name)}{storage_option()}"


def storage_option() -> str:
    """What a command needs to reach this database, without a password."""
    return f" --storage {shlex.quote(data.database_name())}"
