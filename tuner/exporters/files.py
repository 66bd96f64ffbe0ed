"""Files of text: a row a trial as CSV, or everything as JSON. Written whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import IO

from storage import texts
from storage.exports import ExportedStudy, ExportedTrial
from tuner.errors import BadInput
from tuner.exporters.base import Exporter

__all__ = ["Csv", "Json", "NewFile"]


class NewFile:
    """A file that gets its name last; nothing is left of one that was not finished.

    Args:
        path: what was asked for; only its folder must be there.

    Raises:
        BadInput: there is no such folder.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._temporary: str | None = None
        folder = self.path.absolute().parent
        if not folder.is_dir():
            raise BadInput(f"output {path}: there is no folder {folder}; create it first")
        if self.path.is_dir():
            raise BadInput(f"output {path}: is a folder; name a file in it")

    def open(self) -> IO[bytes]:
        """The file to write to, anew."""
        try:
            descriptor, self._temporary = tempfile.mkstemp(
                dir=self.path.absolute().parent, prefix=f".{self.path.name}."
            )
        except OSError as error:
            raise self._refused(error) from error
        return open(descriptor, "wb")

    def finish(self, file: IO[bytes]) -> None:
        """What was written is the file now, and durable."""
        assert self._temporary is not None
        try:
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.chmod(self._temporary, 0o644)
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise self._refused(error) from error
        self._temporary = None

    def discard(self) -> None:
        """Forget what was not finished. Safe to call always."""
        if self._temporary is not None:
            Path(self._temporary).unlink(missing_ok=True)
            self._temporary = None

    def _refused(self, error: OSError) -> BadInput:
        return BadInput(f"output {self.path}: cannot be written ({error.strerror})")


class _Text(Exporter):
    """Text to a file, or to standard output."""

    takes = "end"

    def __init__(self, output: str | None) -> None:
        super().__init__(output)
        self._new = None if output is None else NewFile(output)
        self._file: IO[bytes] | None = None

    def begin(self, study: ExportedStudy) -> None:
        self._study = study
        if self._new is not None:
            self._file = self._new.open()

    def write(self, text: str) -> None:
        if self._file is None:
            sys.stdout.write(text)
        else:
            self._file.write(text.encode())

    def end(self, study: ExportedStudy) -> None:
        if self._new is not None and self._file is not None:
            self._new.finish(self._file)
        else:
            sys.stdout.flush()

    def close(self) -> None:
        if self._new is not None and self._file is not None:
            try:
                self._file.close()  # of a full disk it hears here
            finally:
                self._new.discard()


class Csv(_Text):
    """A row a trial; without reports. See :mod:`storage.texts`."""

    def begin(self, study: ExportedStudy) -> None:
        super().begin(study)
        self.write(texts.csv_head(study))

    def trial(self, trial: ExportedTrial) -> None:
        self.write(texts.csv_row(self._study, trial))


class Json(_Text):
    """One object with everything. See :mod:`storage.texts`."""

    def begin(self, study: ExportedStudy) -> None:
        super().begin(study)
        self._first = True
        self.write(texts.json_head(study))

    def trial(self, trial: ExportedTrial) -> None:
        self.write(texts.json_trial(trial, self._first))
        self._first = False

    def end(self, study: ExportedStudy) -> None:
        self.write(texts.json_tail())
        super().end(study)
