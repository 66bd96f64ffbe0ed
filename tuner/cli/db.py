"""``tuner db``: look at a database's schema, and upgrade it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from tuner.cli.options import json_option, storage_option
from tuner.cli.printing import print_fields, print_json

if TYPE_CHECKING:
    from storage import Database
    from storage.schema import Schema

__all__ = ["db"]


@click.group(short_help="Check and upgrade the database's schema.")
def db() -> None:
    """Check and upgrade the database's schema.

    \b
    Examples:
      tuner db check
      tuner db upgrade --storage postgresql://ann@db/tuner
    """


@db.command(short_help="Look at the schema; nothing is written.")
@storage_option
@json_option
@click.pass_context
def check(ctx: click.Context, storage: str | None, as_json: bool) -> None:
    """Look at the schema of Optuna's tables and of ours; on SQLite at the file's integrity, too.

    Exits with 1 when there is something to do, and says what.

    \b
    Examples:
      tuner db check
    """
    from storage import schema

    with _unchecked(storage) as database:
        found = schema.look(database)
        _print(database, found, as_json)
    if found.problems:
        ctx.exit(1)


@db.command(short_help="Bring our tables to the newest revision.")
@storage_option
@json_option
def upgrade(storage: str | None, as_json: bool) -> None:
    """Bring our tables to the newest revision, in one transaction. Optuna's are not touched.

    \b
    Examples:
      tuner db upgrade
    """
    from storage import schema

    with _unchecked(storage) as database:
        _print(database, schema.upgrade(database), as_json)


@contextlib.contextmanager
def _unchecked(storage: str | None) -> Iterator[Database]:
    """The database, of whatever schema it is."""
    from storage import Database
    from tuner import store

    with store.errors():
        database = Database(storage or store.default_url(), create=False, checked=False)
        try:
            yield database
        finally:
            database.dispose()


def _print(database: Database, found: Schema, as_json: bool) -> None:
    if as_json:
        print_json({**found.__dict__, "problems": found.problems})
        return
    print_fields(
        {
            "database": str(database),
            "Optuna's schema": "no tables yet" if found.optuna is None else str(found.optuna),
            "our revision": "no tables yet" if found.revision is None else found.revision,
            "newest revision": found.head,
            "integrity": found.integrity or "",
        }
    )
    for problem in found.problems:
        click.echo(f"{click.style('wrong', fg='red')}: {problem}")
    if not found.problems:
        click.echo("nothing is wrong")
