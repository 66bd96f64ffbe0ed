"""Logs as JSON, one object a line, for programs that collect them.

Each has ``time`` (UTC), ``level``, ``logger``, ``study``, ``event``, ``message``; and, where it is of a
trial, ``trial`` and ``attempt``; ``detail`` with what belongs to the event; ``traceback``. ``event`` is the
kind of a line of the study's event log (``started``, ``retry``, ``finished``, ...), or ``log``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import optuna

from storage.masking import mask_url

__all__ = ["JsonLines", "as_json", "quiet_optuna"]

_OURS = ("tuner", "storage")


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON.

    Args:
        study: its name.
    """

    def __init__(self, study: str) -> None:
        super().__init__()
        self._study = study

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "study": self._study,
            "event": getattr(record, "event", "log"),
            "message": mask_url(record.getMessage()),
        }
        for name in ("trial", "attempt", "detail"):
            if getattr(record, name, None) is not None:
                line[name] = _masked(getattr(record, name))
        if record.exc_info:
            line["traceback"] = mask_url(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def _masked(value: Any) -> Any:
    """Without the passwords of its texts."""
    if isinstance(value, Mapping):
        return {str(key): _masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(inner) for inner in value]
    return mask_url(value) if isinstance(value, str) else value


@contextlib.contextmanager
def as_json(study: str, file: TextIO | None = None) -> Iterator[None]:
    """For the length of a block everything that is logged in this process is a line of JSON.

    Ours from the level INFO on, which has the study's events; the rest's warnings and errors.

    Args:
        file: default: standard error.
    """
    handler = logging.StreamHandler(file or sys.stderr)
    handler.setFormatter(JsonLines(study))
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in _OURS}
    root.addHandler(handler)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    try:
        yield
    finally:
        optuna.logging.disable_propagation()
        optuna.logging.enable_default_handler()
        logging.captureWarnings(False)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        root.removeHandler(handler)


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna says warnings only: not that a study was made which nobody asked for."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
