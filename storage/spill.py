"""What a holder's batches are kept in while the database is away: a local file, one line a batch.

A line is a checksum and the JSON of the batch's number and writes, and it is on the disk when
:meth:`Spill.append` returns. The holder replays the file when the database is back; after a kill
its successor on the same host does, before it takes the lease. The batch's number is the fence's,
so that nothing is applied twice.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from storage import writes as kinds
from storage.faultpoint import reach
from storage.writes import CreateTrial, PopWaiting, Write

__all__ = ["Spill", "folder", "is_spillable"]


def is_spillable(write: Write) -> bool:
    """Whether the database can take the write later: not a new trial, whose id and number it gives,
    and not a waiting one, which another program may pop meanwhile.
    """
    return not isinstance(write, CreateTrial | PopWaiting)


def folder() -> Path:
    """``$TUNER_SPILL``, else the user's state folder."""
    given = os.environ.get("TUNER_SPILL")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(given) if given else Path(state) / "tuner"


class Spill:
    """The file of one study and one epoch of its lease. There is none until the first batch.

    Args:
        study_uid, epoch: whose batches.
    """

    def __init__(self, study_uid: str, epoch: int) -> None:
        self._study_uid = study_uid
        self._epoch = epoch
        self.path = folder() / f"spill-{study_uid}-{epoch}.jsonl"

    def append(self, seq: int, writes: Sequence[Write]) -> None:
        """Keep a batch; on the disk on return.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        new = not self.path.exists()
        if new:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps([seq, [_encoded(write) for write in writes]])
        line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            before = os.fstat(descriptor).st_size
            try:
                while line:
                    line = line[os.write(descriptor, line) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)  # a torn line would hide those after it
                raise
        finally:
            os.close(descriptor)
        if new:
            _sync_folder(self.path.parent)
        reach("spilled")

    def read(self) -> list[tuple[int, list[Write]]]:
        """The batches in order, up to the first torn line; empty where there is no file."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        batches = []
        for line in lines:
            digest, _, text = line.partition(b" ")
            if digest != f"{zlib.crc32(text):08x}".encode():
                break
            seq, encoded = json.loads(text)
            batches.append((seq, [_decoded(one) for one in encoded]))
        return batches

    def drop_older(self) -> None:
        """Remove what earlier epochs left: a holder on another host went on without it."""
        for path in self.path.parent.glob(f"spill-{self._study_uid}-*.jsonl"):
            if int(path.stem.rpartition("-")[2]) < self._epoch:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Its batches are in the database, or will never be."""
        self.path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encoded(value: Any) -> Any:
    if isinstance(value, Write):
        fields = dataclasses.fields(value)
        return {
            "write": type(value).__name__,
            **{field.name: _encoded(getattr(value, field.name)) for field in fields},
        }
    if isinstance(value, TrialState):
        return {"state": value.name}
    if isinstance(value, dt.datetime):
        return {"time": value.isoformat()}
    if isinstance(value, dict):
        return {"dict": {key: _encoded(one) for key, one in value.items()}}
    return [_encoded(one) for one in value] if isinstance(value, list | tuple) else value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(one) for one in value)
    if not isinstance(value, dict):
        return value
    if "write" in value:
        kind = getattr(kinds, value["write"])
        return kind(**{name: _decoded(one) for name, one in value.items() if name != "write"})
    if "state" in value:
        return TrialState[value["state"]]
    if "time" in value:
        return dt.datetime.fromisoformat(value["time"])
    return {key: _decoded(one) for key, one in value["dict"].items()}
