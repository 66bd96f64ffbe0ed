"""What a person can do about an error of a database, by its words."""

from __future__ import annotations

from pathlib import Path

__all__ = ["postgresql", "sqlite"]

_SQLITE = {
    "not a database": "; name a SQLite file, or one that is not there yet",
    "malformed": "; restore a copy of it, or copy what can be read with 'tuner copy'",
    "readonly": "; it and its folder must be writable: change that, or work on a copy of the file",
    "is full": "; make room on its disk, and try again",
    "is locked": "; another program is writing to it: wait for its end, or end it",
    "I/O error": "; see whether its disk is full or broken",
}


def sqlite(cause: str, file: Path) -> str:
    """The next step as the end of a line, or "".

    Example:
        >>> sqlite("database or disk is full", Path("tuner.db"))
        '; make room on its disk, and try again'
    """
    if "unable to open" in cause:
        if file.is_dir():
            return "; it is a folder: name a file in it"
        return "; also to read it, SQLite writes beside it: make its folder writable, or copy the file"
    return next((step for words, step in _SQLITE.items() if words in cause), "")


def postgresql(cause: str) -> str:
    """The next step as the end of a line, or ""."""
    if "password" in cause:
        return "; keep it in ~/.pgpass or $PGPASSWORD, or the whole URL in $TUNER_STORAGE"
    if "connect" in cause.lower():
        return "; check that the server runs, and its host and port in the URL"
    return ""
