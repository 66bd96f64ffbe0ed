"""A study's rows: Optuna's own, and ours beside them under a uid that no delete gives again."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from optuna.study import StudyDirection
from sqlalchemy.engine import Connection

from storage import bulk
from storage.clock import utcnow
from storage.database import Database
from storage.errors import Refused, UnknownStudy
from storage.tables import HOME_KEY, UID_KEY, checkpoints, metadata, optuna_base, optuna_tables, studies

__all__ = [
    "StudyRecord",
    "check_name",
    "check_there",
    "checkpoint_paths",
    "copy_attributes",
    "create",
    "delete",
    "find",
    "inherit",
    "insert",
    "lock",
    "names",
    "register",
]


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study as the database has it.

    Attributes:
        uid: ours; "" for a study that only Optuna knows.
        directions: ``"minimize"`` or ``"maximize"`` for each objective.
        seed: of the study; None as long as it is not registered.
        sampler, pruner: text such as ``"tpe(n_startup_trials=20)"``; None where an object was given.
        objective: reference as plain data; None where it was sent by value, or never run.
        settings: what ``optimize`` was last called with, as plain data.
        stop_reason: why the last run ended, or None.

    Example:
        >>> optuna_storage = storage.SqlStorage("sqlite:///tuner.db")
        >>> study = optuna.create_study(study_name="recorded", storage=optuna_storage)
        >>> from storage import studies
        >>> studies.find(storage.Database("sqlite:///tuner.db"), "recorded").directions
        ('minimize',)
    """

    name: str
    study_id: int
    directions: tuple[str, ...]
    uid: str = ""
    seed: int | None = None
    sampler: str | None = None
    pruner: str | None = None
    objective: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    stop_reason: str | None = None


def find(database: Database, name: str) -> StudyRecord | None:
    """The study of that name, or None."""
    with database.errors(), database.read() as connection:
        return _find(connection, name)


def names(database: Database) -> list[str]:
    """The names of all studies, in order of creation."""
    table = optuna_tables["studies"]
    with database.errors(), database.read() as connection:
        return list(connection.execute(sa.select(table.c.study_name).order_by(table.c.study_id)).scalars())


def create(
    database: Database,
    name: str,
    directions: Sequence[str],
    *,
    seed: int,
    sampler: str | None,
    pruner: str | None,
) -> StudyRecord | None:
    """A new study with our row beside it, in one transaction; None when the name is taken.

    Nothing is written, and no lock waited for, where a look shows that it is.

    Raises:
        Refused: the name cannot be stored (empty, NUL, above 512 characters).
    """
    check_name(name)
    if find(database, name) is not None:
        return None
    try:
        with database.errors(), database.write() as connection:
            study_id = insert(connection, name, [StudyDirection[way.upper()] for way in directions])
            _register(connection, study_id, seed=seed, sampler=sampler, pruner=pruner)
    except sa.exc.IntegrityError:
        return None
    return find(database, name)


def insert(connection: Connection, name: str, directions: Sequence[StudyDirection]) -> int:
    """Optuna's rows of a new study, on an open transaction; its id.

    Raises:
        sqlalchemy.exc.IntegrityError: the name is taken.
    """
    table, ways = optuna_tables["studies"], optuna_tables["study_directions"]
    result = connection.execute(table.insert().values(study_name=name))
    study_id = int(result.inserted_primary_key[0])  # type: ignore[index]
    for objective, way in enumerate(directions):
        connection.execute(ways.insert().values(study_id=study_id, direction=way, objective=objective))
    return study_id


def register(
    database: Database, name: str, *, seed: int, sampler: str | None, pruner: str | None
) -> StudyRecord:
    """Our row beside a study that plain Optuna made; the record as it is when it has one: then
    nothing is written, so that a driver that was stopped inside a transaction keeps nobody out.

    Raises:
        UnknownStudy: no study of that name.
    """
    found = find(database, name)
    if found is not None and found.uid and found.seed is not None:
        return found
    with database.errors(), database.write() as connection:
        record = _find(connection, name)
        if record is None:
            raise UnknownStudy(f"there is no study {name!r} in {database}")
        if not record.uid or record.seed is None:
            _register(connection, record.study_id, seed=seed, sampler=sampler, pruner=pruner)
            record = _find(connection, name)
    assert record is not None  # of this transaction
    return record


def lock(connection: Connection, study_id: int) -> bool:
    """Serialise new trials of a study over all programs until the transaction ends, as Optuna does,
    and keep everybody from deleting it; False where it is not there any more. On SQLite the write
    transaction itself does.
    """
    table = optuna_tables["studies"]
    query = sa.select(table.c.study_id).where(table.c.study_id == study_id).with_for_update()
    return connection.execute(query).first() is not None


def check_there(connection: Connection, record: StudyRecord) -> None:
    """Refuse to go on with a study that was deleted since it was looked up, also where another one
    has its name now, or its id, which SQLite gives again.

    Raises:
        UnknownStudy: it was deleted.
    """
    found = _find(connection, record.name)
    if found is None or found.study_id != record.study_id or record.uid not in ("", found.uid):
        raise UnknownStudy(f"study {record.name!r} was deleted by another program meanwhile")


def copy_attributes(source: Connection, target: Connection, old_id: int, new_id: int) -> None:
    """Optuna's attributes of a study to another, without the mark that makes it ours."""
    for kind in ("user", "system"):
        table = optuna_tables[f"study_{kind}_attributes"]
        rows = source.execute(sa.select(table.c.key, table.c.value_json).where(table.c.study_id == old_id))
        kept = [(new_id, key, text) for key, text in rows if key not in (UID_KEY, HOME_KEY)]
        bulk.insert(target, table, ("study_id", "key", "value_json"), kept)


def inherit(source: Connection, target: Connection, uid: str, study_id: int) -> str:
    """Make a study ours with the settings of another; its uid: the same where it is free."""
    row = source.execute(sa.select(studies).where(studies.c.study_uid == uid)).mappings().one()
    taken = target.execute(sa.select(studies.c.study_uid).where(studies.c.study_uid == uid)).first()
    new_uid = uuid.uuid4().hex if taken else uid
    _mark(target, study_id, new_uid)
    target.execute(studies.insert().values({**row, "study_uid": new_uid, "driving": None}))
    return new_uid


def delete(database: Database, name: str) -> bool:
    """Delete a study with all that is ours of it, in one transaction; False if there was none.

    Files of checkpoints stay.
    """
    with database.errors(), database.write() as connection:
        record = _find(connection, name)
        if record is None or not lock(connection, record.study_id):
            return False
        for table in metadata.tables.values():
            connection.execute(table.delete().where(table.c.study_uid == record.uid))
        trials = optuna_tables["trials"]
        own = sa.select(trials.c.trial_id).where(trials.c.study_id == record.study_id)
        for table in reversed(optuna_base.sorted_tables):
            if "trial_id" in table.c and table is not trials:
                connection.execute(table.delete().where(table.c.trial_id.in_(own)))
        for table in reversed(optuna_base.sorted_tables):
            if "study_id" in table.c:
                connection.execute(table.delete().where(table.c.study_id == record.study_id))
    return True


def checkpoint_paths(database: Database, uid: str) -> list[str]:
    """Where the files of a study's checkpoints are."""
    query = sa.select(checkpoints.c.path).where(checkpoints.c.study_uid == uid)
    with database.errors(), database.read() as connection:
        return list(connection.execute(query).scalars())


def check_name(name: str) -> None:
    """Refuse a name that one of the databases cannot hold."""
    if not isinstance(name, str) or not name or "\0" in name or len(name) > 512:
        shown = name if len(str(name)) <= 60 else f"{name[:57]}..."
        raise Refused(f"study name {shown!r}: give 1 to 512 characters without NUL")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise Refused(f"study name {name!r} has a lone surrogate, which no database stores") from None


def _register(
    connection: Connection, study_id: int, *, seed: int, sampler: str | None, pruner: str | None
) -> None:
    uid = _uid(connection, study_id)
    if uid is None:
        uid = uuid.uuid4().hex
        _mark(connection, study_id, uid)
    row = {
        "study_uid": uid,
        "seed": seed,
        "sampler": sampler,
        "pruner": pruner,
        "settings": "{}",
        "created_at": utcnow(),
    }
    connection.execute(studies.insert().values(row))


def _find(connection: Connection, name: str) -> StudyRecord | None:
    table, ways = optuna_tables["studies"], optuna_tables["study_directions"]
    study_id = connection.execute(
        sa.select(table.c.study_id).where(table.c.study_name == name)
    ).scalar_one_or_none()
    if study_id is None:
        return None
    query = sa.select(ways.c.direction).where(ways.c.study_id == study_id).order_by(ways.c.objective)
    directions = tuple(way.name.lower() for way in connection.execute(query).scalars())
    uid = _uid(connection, study_id)
    record = StudyRecord(name=name, study_id=study_id, directions=directions)
    if uid is None:
        return record
    row = connection.execute(sa.select(studies).where(studies.c.study_uid == uid)).one_or_none()
    if row is None:
        return record
    return StudyRecord(
        name=name,
        study_id=study_id,
        directions=directions,
        uid=uid,
        seed=row.seed,
        sampler=row.sampler,
        pruner=row.pruner,
        objective=json.loads(row.objective) if row.objective else None,
        settings=json.loads(row.settings),
        stop_reason=row.stop_reason,
    )


def _mark(connection: Connection, study_id: int, uid: str) -> None:
    attrs = optuna_tables["study_system_attributes"]
    mine = (attrs.c.study_id == study_id) & attrs.c.key.in_((UID_KEY, HOME_KEY))
    connection.execute(attrs.delete().where(mine))
    rows = [(study_id, UID_KEY, json.dumps(uid)), (study_id, HOME_KEY, json.dumps(study_id))]
    bulk.insert(connection, attrs, ("study_id", "key", "value_json"), rows)


def _uid(connection: Connection, study_id: int) -> str | None:
    """Our uid of the study; None where it has none, or only a copy of another study's: Optuna's
    ``copy_study`` and optuna-dashboard's rename copy the attributes.
    """
    attrs = optuna_tables["study_system_attributes"]
    query = sa.select(attrs.c.key, attrs.c.value_json).where(
        attrs.c.study_id == study_id, attrs.c.key.in_((UID_KEY, HOME_KEY))
    )
    found = {row.key: json.loads(row.value_json) for row in connection.execute(query)}
    return found.get(UID_KEY) if found.get(HOME_KEY, study_id) == study_id else None
