"""Tables for people and JSON for programs."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import click

__all__ = [
    "ago",
    "as_plain",
    "harmless",
    "moment",
    "print_fields",
    "print_json",
    "print_table",
    "seconds_text",
    "size_text",
    "values_text",
]


def as_plain(value: Any) -> Any:
    """What JSON can hold: dataclasses as objects, times as ISO in UTC, nan and inf as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: as_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [as_plain(inner) for inner in value]
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=dt.UTC).isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def harmless(text: str) -> str:
    """A name, or a line of output, for a terminal: without colours, and with no sign that commands it.

    Example:
        >>> harmless("\\x1b[31mred\\x1b[0m \\x1b]0;title\\x07")
        'red \\\\x1b]0;title\\\\x07'
    """
    shown = click.unstyle(text)
    return "".join(
        ascii(one)[1:-1] if unicodedata.category(one) == "Cc" and one != "\t" else one for one in shown
    )


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print a value as JSON; in ASCII where the output does not take every sign."""
    ascii_only = (sys.stdout.encoding or "utf-8").lower().replace("-", "") != "utf8"
    click.echo(json.dumps(as_plain(value), indent=indent, ensure_ascii=ascii_only))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print a table; on a terminal it fits the width, in a pipe nothing is cut.

    Args:
        right: columns that are set to the right.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(
            name, justify="right" if name in right else "left", no_wrap=True, overflow="ellipsis"
        )
    shown = [[harmless(cell) for cell in row] for row in rows]
    for row in shown:
        table.add_row(*[Text(cell) for cell in row])
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        widths = [max(len(cell) for cell in column) + 2 for column in zip(columns, *shown, strict=True)]
        console.width = max(80, sum(widths))
    console.print(table)


def print_fields(fields: Mapping[str, str]) -> None:
    """Print name and value, one a line; what is empty is left out."""
    shown = {name: value for name, value in fields.items() if value}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {value}")


def values_text(values: Sequence[float]) -> str:
    """The values of a trial; ``-`` for none."""
    from tuner.progress import number_text

    return ", ".join(map(number_text, values)) or "-"


def moment(stored: dt.datetime | None) -> str:
    """A stored UTC time as local time; ``-`` for none."""
    if stored is None:
        return "-"
    return stored.replace(tzinfo=dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ago(stored: dt.datetime | None) -> str:
    """How long ago a stored UTC time was, such as ``5 min ago``."""
    if stored is None:
        return "never"
    seconds = (dt.datetime.now(dt.UTC) - stored.replace(tzinfo=dt.UTC)).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def seconds_text(seconds: float) -> str:
    """A duration for people, such as ``0.25 s``, ``2 min 5 s``, ``3 h 20 min``, ``4 d 2 h``.

    Example:
        >>> seconds_text(12000)
        '3 h 20 min'
    """
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    parts: list[str] = []
    left = round(seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(part for part in parts[:2] if part)


def size_text(count: float) -> str:
    """Bytes for people.

    Example:
        >>> size_text(3 * 2**29), size_text(5_000)
        ('1.5 GiB', '4.88 KiB')
    """
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
