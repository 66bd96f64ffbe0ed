"""What a program under attack says of its own doing: a line before and after every operation, on the disk.

A line is JSON: ``at`` (the kernel's monotonic clock, the same in all processes), ``kind``
(``invoke``, ``ok``, ``fail``), ``name``, and what belongs to the operation. An ``invoke`` that
nothing follows is *unknown*: it may or may not have been carried out.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage import Unavailable

__all__ = ["History", "Record", "read"]


@dataclass(kw_only=True)
class Record:
    """One operation: ``state`` is ok, fail or unknown."""

    program: str
    name: str
    given: dict[str, Any]
    began: float
    state: str = "unknown"
    ended: float = float("inf")
    found: dict[str, Any] = field(default_factory=dict)


class History:
    """Appends to the file of one program; each line is on the disk before the call returns."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._numbers = itertools.count()

    @contextlib.contextmanager
    def operation(self, name: str, **given: Any) -> Iterator[dict[str, Any]]:
        """Around an operation; what it found goes into the dictionary that this yields."""
        number = next(self._numbers)
        self._write("invoke", number, name=name, given=given)
        found: dict[str, Any] = {}
        try:
            yield found
        except Unavailable:
            raise  # it may be carried out yet
        except Exception as error:
            self._write("fail", number, found={"error": f"{type(error).__name__}: {error}"})
            raise
        self._write("ok", number, found=found)

    def _write(self, kind: str, number: int, **fields: Any) -> None:
        line = json.dumps({"at": time.monotonic(), "pid": os.getpid(), "kind": kind, "n": number, **fields})
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read(paths: Sequence[Path]) -> list[Record]:
    """The operations of several programs, in the order in which they began."""
    records: list[Record] = []
    for path in paths:
        opened: dict[tuple[int, int], Record] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.endswith("}"):
                continue  # torn by the kill: as if it had not been written
            entry = json.loads(line)
            key = (entry["pid"], entry["n"])
            if entry["kind"] == "invoke":
                opened[key] = Record(
                    program=f"{path.stem}:{entry['pid']}",
                    name=entry["name"],
                    given=entry["given"],
                    began=entry["at"],
                )
                records.append(opened[key])
            else:
                opened[key].state = entry["kind"]
                opened[key].ended = entry["at"]
                opened[key].found = entry["found"]
    return sorted(records, key=lambda record: record.began)
