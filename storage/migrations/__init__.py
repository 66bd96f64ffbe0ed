"""The schema of our tables, by Alembic revisions with a version table of our own.

Optuna owns the table ``alembic_version`` of the same database; ours is ``tuner_alembic_version``,
and Optuna's tables are hidden from Alembic's comparison.
"""

from __future__ import annotations

import functools
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

__all__ = ["VERSION_TABLE", "differences", "head", "known", "revision", "upgrade"]

VERSION_TABLE = "tuner_alembic_version"


@functools.cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).parent))


def head() -> str:
    """The newest revision that this version knows."""
    found = _scripts().get_current_head()
    assert found is not None
    return found


def known() -> frozenset[str]:
    """Every revision that this version can upgrade from."""
    return frozenset(script.revision for script in _scripts().walk_revisions())


def revision(connection: Connection) -> str | None:
    """The revision of the database's tables of ours; None where there are none."""
    return _context(connection).get_current_revision()


def upgrade(connection: Connection) -> None:
    """Bring our tables to :func:`head` within the caller's transaction."""
    scripts = _scripts()

    def steps(current: object, context: MigrationContext) -> object:
        return scripts._upgrade_revs(head(), current)  # type: ignore[arg-type]

    context = _context(connection, fn=steps)
    with Operations.context(context):
        context.run_migrations()


def differences(connection: Connection) -> list[object]:
    """What the database's tables of ours lack against the models; empty when they agree."""
    from alembic.autogenerate import compare_metadata

    from storage.tables import metadata

    return list(compare_metadata(_context(connection), metadata))


def _context(connection: Connection, **options: object) -> MigrationContext:
    def ours(name: str | None, kind: str, parents: object) -> bool:
        return kind != "table" or bool(name and name.startswith("tuner_") and name != VERSION_TABLE)

    return MigrationContext.configure(
        connection,
        opts={"version_table": VERSION_TABLE, "include_name": ours, "target_metadata": None, **options},
    )
