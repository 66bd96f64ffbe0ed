"""``tuner doctor``: what this machine has, what is wrong with it, and what to do about it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable

import click

from tuner.cli.checks.finding import Finding
from tuner.cli.options import json_option, storage_option

__all__ = ["doctor"]


@click.command(short_help="Check this machine, the database and Ray.")
@click.option("--ray/--no-ray", default=True, help="Start a local Ray, or reach the cluster.  [default: yes]")
@click.option(
    "--address", metavar="RAY", help="Ray cluster to reach.  [default: $RAY_ADDRESS, else a local one]"
)
@storage_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, ray: bool, address: str | None, storage: str | None, as_json: bool) -> None:
    """Check versions, settings, database, Ray, GPUs, clocks and file systems; exit 1 if something is wrong.

    Nothing is written. On a cluster every node is asked for its versions and its clock.

    \b
    Examples:
      tuner doctor
      tuner doctor --no-ray --storage postgresql://ann@db/tuner
      tuner doctor --address auto --json
    """
    from tuner.cli.checks import cluster, database, machine, settings
    from tuner.cli.printing import print_json

    checks: list[Callable[[], Iterable[Finding]]] = [
        machine.python,
        machine.packages,
        settings.settings,
        lambda: [database.sqlite_finding(sqlite3.sqlite_version_info)],
        lambda: database.database(storage),
        machine.gpus,
        machine.memory,
        machine.folders,
        machine.names,
    ]
    if ray:
        checks.append(lambda: cluster.cluster(address))
    found = []
    for check in checks:
        for finding in check():
            found.append(finding)
            if not as_json:
                _print(finding)
    wrong = sum(finding.state == "wrong" for finding in found)
    if as_json:
        print_json(found)
    else:
        warned = sum(finding.state == "warning" for finding in found)
        notes = f"; {warned} to look at" if warned else ""
        click.echo(f"{wrong} wrong{notes}" if wrong else f"nothing is wrong{notes}")
    if wrong:
        ctx.exit(1)


def _print(finding: Finding) -> None:
    colour = {"ok": "green", "warning": "magenta", "wrong": "red"}[finding.state]  # yellow is lost on white
    click.echo(f"{click.style(finding.state.ljust(8), fg=colour)} {finding.name}: {finding.detail}")
    if finding.fix:
        click.echo(f"         {finding.fix}")
