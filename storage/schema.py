"""The state of a database's schema, Optuna's and ours, and the way to the newest of ours."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from storage import migrations
from storage.database import Database
from storage.errors import Unavailable
from storage.tables import OPTUNA_SCHEMA

__all__ = ["Schema", "look", "upgrade"]


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What was found.

    Attributes:
        optuna: version of Optuna's tables; None where there are none.
        revision: of our tables; None where there are none.
        head: the newest revision that this version knows.
        integrity: what SQLite's own check says, ``"ok"`` when all is well; None on PostgreSQL.
        differences: what our tables lack against the models.
    """

    optuna: int | None
    revision: str | None
    head: str
    integrity: str | None
    differences: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps this version from using the database, each with the next step."""
        found = []
        if self.optuna is not None and self.optuna != OPTUNA_SCHEMA:
            step = (
                "run 'optuna storage upgrade --storage URL'"
                if self.optuna < OPTUNA_SCHEMA
                else "upgrade Tuner with 'pip install -U tuner'"
            )
            found.append(f"Optuna's schema is {self.optuna}, this Tuner writes {OPTUNA_SCHEMA}: {step}")
        if self.revision is not None and self.revision not in migrations.known():
            found.append(
                f"our tables are of revision {self.revision}, written by a newer Tuner: "
                "upgrade with 'pip install -U tuner'"
            )
        elif self.revision not in (None, self.head):
            found.append(f"our tables are of revision {self.revision}: run 'tuner db upgrade'")
        elif self.differences:
            found.append(f"our tables differ from revision {self.head}: {'; '.join(self.differences)}")
        if self.integrity not in (None, "ok"):
            found.append(
                f"SQLite finds the file damaged: {self.integrity}; copy what can be read with 'tuner copy'"
            )
        return tuple(found)


def look(database: Database, *, integrity: bool = True) -> Schema:
    """What the database holds; nothing is written.

    Args:
        database: opened with ``create=False, checked=False``.
        integrity: let SQLite read the whole file, which takes a while where it is large.
    """
    with database.errors(), database.read() as connection:
        names = set(sa.inspect(connection).get_table_names())
        version = None
        if "version_info" in names:
            version = connection.execute(sa.text("SELECT schema_version FROM version_info")).scalar()
        revision = migrations.revision(connection) if migrations.VERSION_TABLE in names else None
        differences: tuple[str, ...] = ()
        if revision == migrations.head():
            differences = tuple(str(one) for one in migrations.differences(connection))
        said = None
        if database.is_sqlite and integrity:
            lines = connection.execute(sa.text("PRAGMA integrity_check(5)")).scalars()
            said = "; ".join(" ".join(line.split()) for line in lines)
    return Schema(
        optuna=version,
        revision=revision,
        head=migrations.head(),
        integrity=said,
        differences=differences,
    )


def upgrade(database: Database) -> Schema:
    """Bring our tables to the newest revision, in one transaction; Optuna's are not touched.

    Args:
        database: as for :func:`look`.

    Raises:
        Unavailable: of a newer Tuner, or of another Optuna: nothing was written.
    """
    before = look(database)
    if (
        before.revision is not None
        and before.revision != before.head
        and before.revision in migrations.known()
    ):
        blocking = tuple(one for one in before.problems if "tuner db upgrade" not in one)
    else:
        blocking = before.problems
    if blocking:
        raise Unavailable(f"the database {database} cannot be upgraded: {blocking[0]}")
    if before.revision is not None and before.revision != before.head:
        with database.errors(), database.write() as connection:
            migrations.upgrade(connection)
    return look(database)
