"""What tells a study that needs a person: the newest trials that ended, and attempts without a driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from storage import selects, tables
from storage.expressions import among
from storage.progress import FINISHED
from storage.selects import TRIALS
from storage.tables import UID_KEY, optuna_tables

__all__ = ["NEWEST", "Health", "health"]

NEWEST = 20
"""How many of a study's newest finished trials are looked at."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """How a study fares.

    Attributes:
        newest: count of the newest finished trials, at most 20, by state name.
        running: attempts of ours that have begun and not ended.
        arguments: what the newest attempt's driver was called with, passwords masked; empty for none.
    """

    newest: Mapping[str, int] = field(default_factory=dict)
    running: int = 0
    arguments: tuple[str, ...] = ()


def health(engine: Engine, ids: Sequence[int]) -> dict[int, Health]:
    """How the studies with these ids of Optuna's fare, by id."""
    with selects.view(engine) as connection:
        newest = _newest(connection, ids)
        attrs = optuna_tables["study_system_attributes"]
        known = sa.select(attrs.c.value_json, attrs.c.study_id).where(
            attrs.c.key == UID_KEY, among(connection, attrs.c.study_id, ids)
        )
        studies = {selects.from_json(text): study_id for text, study_id in connection.execute(known)}
        running: dict[int, int] = {}
        arguments: dict[int, tuple[str, ...]] = {}
        if studies and selects.have_ours(connection):
            table = tables.attempts
            begun = sa.select(table.c.study_uid, sa.func.count()).where(table.c.state == "running")
            for uid, count in connection.execute(begun.group_by(table.c.study_uid)):
                if uid in studies:
                    running[studies[uid]] = count
            for uid, text in connection.execute(_newest_provenance(list(studies))):
                said = (selects.from_json(text) or {}).get("arguments") or ()
                arguments[studies[uid]] = tuple(str(part) for part in said)
    return {
        study_id: Health(
            newest=newest.get(study_id, {}),
            running=running.get(study_id, 0),
            arguments=arguments.get(study_id, ()),
        )
        for study_id in ids
    }


def _newest(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, int]]:
    """The newest finished trials of each study: one statement that reads their rows alone."""
    studies, others = optuna_tables["studies"], TRIALS.alias()
    nth = sa.select(others.c.trial_id).where(
        others.c.study_id == studies.c.study_id, others.c.state.in_(FINISHED)
    )
    nth = nth.order_by(others.c.trial_id.desc()).limit(1).offset(NEWEST - 1).correlate(studies)
    recent = (TRIALS.c.study_id == studies.c.study_id) & (
        TRIALS.c.trial_id >= sa.func.coalesce(nth.scalar_subquery(), 0)
    )
    query = sa.select(studies.c.study_id, TRIALS.c.state, sa.func.count()).join_from(studies, TRIALS, recent)
    query = query.where(among(connection, studies.c.study_id, ids), TRIALS.c.state.in_(FINISHED))
    found: dict[int, dict[str, int]] = {}
    for study_id, state, count in connection.execute(query.group_by(studies.c.study_id, TRIALS.c.state)):
        found.setdefault(study_id, {})[state.name] = count
    return found


def _newest_provenance(uids: Sequence[str]) -> sa.Select[str, str | None]:
    """The provenance of each study's newest attempt that has one."""
    leases, table = tables.leases, tables.attempts
    newest = sa.select(sa.func.max(table.c.attempt_id)).where(
        table.c.study_uid == leases.c.study_uid, table.c.provenance.is_not(None)
    )
    here = table.c.attempt_id == newest.correlate(leases).scalar_subquery()
    query = sa.select(leases.c.study_uid, table.c.provenance).join_from(leases, table, here)
    return query.where(leases.c.study_uid.in_(uids), leases.c.owner.is_not(None))
