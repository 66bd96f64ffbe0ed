"""``tuner studies``: what is in a database."""

from __future__ import annotations

import click

from tuner.cli.options import json_option, storage_option
from tuner.cli.source import driver_of, plain, reading

__all__ = ["studies"]

_STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")


@click.command(short_help="List the studies of a database.")
@click.argument("search", default="")
@storage_option
@json_option
def studies(search: str, storage: str | None, as_json: bool) -> None:
    """List the studies of a database, newest activity first; those whose name contains SEARCH.

    \b
    Examples:
      tuner studies
      tuner studies digits --storage sqlite:///other.db --json
    """
    from storage import reads
    from tuner.cli.printing import ago, print_json, print_table
    from tuner.progress import number_text

    with reading(storage) as database:
        rows = [] if reads.is_empty(database.engine) else reads.studies(database.engine, search)
        where = str(database)
    if as_json:
        print_json([plain(row) for row in rows])
        return
    if not rows:
        click.echo(f"no study{f' with {search!r} in its name' if search else ''} in {where}")
        return
    cells = []
    for row in rows:
        counts = [str(row.states.get(state, 0)) for state in _STATES[:4]]
        best = number_text(row.best) if len(row.directions) == 1 else f"{len(row.directions)} objectives"
        of = str(row.n_trials) if row.n_trials is not None else "-"
        driver = driver_of(row)
        cells.append(
            [row.name, *counts, of, best, driver if driver != "none" else "-", ago(row.last_activity)]
        )
    columns = ["study", "complete", "pruned", "failed", "running", "asked", "best", "driver", "last activity"]
    print_table(columns, cells, right=columns[1:6])
