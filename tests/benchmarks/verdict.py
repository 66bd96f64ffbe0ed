"""How a benchmark ends: its table, its file, and whether the figures were reached."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks import machine

__all__ = ["conclude"]


def conclude(
    console: Console, table: Table, results: Sequence[Any], file: str | None, *, judged: bool
) -> int:
    """Show the table, write the results to a file, and give the exit code: 1 where a figure was missed.

    Args:
        results: dataclasses whose ``passed`` is None where there was too little work to judge by.
        file: for the machine and the results as JSON; None for none.
        judged: there was enough work.
    """
    console.print(table)
    if file:
        values = [dataclasses.asdict(result) for result in results]
        said = {"machine": machine.described(), "results": values}
        Path(file).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n")
    missed = [result for result in results if result.passed is False]
    if not judged:
        console.print("--quick: too little work to judge by; leave it out for the figures")
    elif missed:
        console.print(f"[red]{len(missed)} of {len(results)} figures missed[/red]")
    return 1 if missed else 0
