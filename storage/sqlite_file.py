"""The file of a SQLite database: where it is, whether it may be there, and whether it still is.

SQLite goes on in a file that was removed or replaced under it, and says nothing; what it writes
then is gone with the process. :class:`Anchor` sees that, and saves what is still held open.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import urllib.parse
from pathlib import Path

import psutil
import sqlalchemy as sa

from storage.errors import Unavailable

__all__ = ["Anchor", "check", "file_system", "path_of", "remove"]

_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "ceph", "lustre", "glusterfs", "afs")


def path_of(url: sa.URL) -> Path | None:
    """The file that a ``sqlite:///`` URL names, also as ``file:PATH?uri=true``; None for one in memory.

    Example:
        >>> path_of(sa.make_url("sqlite:////data/tuner.db"))
        PosixPath('/data/tuner.db')
    """
    text = url.database or ""
    if text.startswith("file:") and url.query.get("uri") in ("true", "1", "yes", "on"):
        text = urllib.parse.unquote(text.removeprefix("file:"))
        if text.startswith("//"):
            text = "/" + text[2:].partition("/")[2]
        if url.query.get("mode") == "memory":
            return None
    return None if text in ("", ":memory:") else Path(text).absolute()


def check(file: Path, create: bool) -> None:
    """Refuse a file on a network file system, in a missing folder, or missing altogether.

    Raises:
        Unavailable: names it.
    """
    if not file.parent.is_dir():
        raise Unavailable(
            f"the folder {file.parent} of the database {file.name} does not exist; create it first"
        )
    if not create and not file.exists():
        raise Unavailable(
            f"there is no database {file}; name another with --storage, or create a study first"
        )
    kind = file_system(file.parent)
    if kind.startswith(_NETWORK_FILE_SYSTEMS):
        raise Unavailable(
            f"{file} lies on a network file system ({kind}), where SQLite corrupts its files; "
            "use a local folder or PostgreSQL"
        )


def remove(file: Path) -> None:
    """Remove a database that nobody uses, with what SQLite keeps beside it."""
    for ending in ("", "-journal", "-wal", "-shm"):
        Path(f"{file}{ending}").unlink(missing_ok=True)


def file_system(folder: Path) -> str:
    """The kind of file system that a folder is on, such as ``"ext4"``; "" where nobody can say."""
    real = os.path.realpath(folder)
    best, kind = "", ""
    for part in psutil.disk_partitions(all=True):
        point = part.mountpoint.rstrip("/") + "/"
        if (real + "/").startswith(point) and len(point) >= len(best):
            best, kind = point, part.fstype
    return kind


class Anchor:
    """A connection that is kept: while it is open, the files that it is on hold what they held.

    Not for statements. Safe under threads, of which one at a time may call :meth:`rescue`.

    Args:
        file: of the database, as it was named: a link may come to name another.
        connection: a new one, to the same file; closed here.

    Raises:
        sqlite3.Error: it cannot be read.
    """

    def __init__(self, file: Path, connection: sqlite3.Connection) -> None:
        self._connection = connection
        try:
            connection.execute("PRAGMA schema_version").fetchone()  # it opens the WAL, where there is one
            real = connection.execute("PRAGMA database_list").fetchone()[2]
        except sqlite3.Error:
            connection.close()
            raise
        self.file = file
        self._beside = [Path(f"{real}{ending}") for ending in ("-wal", "-shm")]
        found = {path: _inode(path) for path in (file, *self._beside)}
        self._inodes = {str(path): inode for path, inode in found.items() if inode is not None}
        self._mode = os.stat(file).st_mode & 0o777 if file.exists() else 0o600

    def displaced(self) -> str:
        """The path of a file of the database that is no longer there, or is another one; else ""."""
        for path, inode in self._inodes.items():
            if _inode(path) != inode:
                return path
        return ""

    def rescue(self, *folders: Path) -> Path:
        """A copy of the database as this connection has it, every commit included, in the first folder
        that takes it.

        What is left of the old files where the database was is removed: SQLite would take its
        log for that of another database that is put there.

        Raises:
            OSError, sqlite3.Error: no folder took it; of the last one.
        """
        for folder in folders:
            try:
                copied = self._copy_to(folder)
                break
            except (OSError, sqlite3.Error):
                if folder == folders[-1]:
                    raise
        if _inode(self.file) != self._inodes[str(self.file)]:
            for path in self._beside:
                if str(path) in self._inodes and _inode(path) == self._inodes[str(path)]:
                    path.unlink(missing_ok=True)
        return copied

    def close(self) -> None:
        """Let the files go."""
        self._connection.close()

    def _copy_to(self, folder: Path) -> Path:
        """
        Raises:
            OSError, sqlite3.Error: nothing is left there.
        """
        number = 1
        while True:
            name = f"{self.file.stem}.rescued{f'-{number}' if number > 1 else ''}{self.file.suffix}"
            copy = folder / name
            try:
                os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self._mode))
                break
            except FileExistsError:
                number += 1
        try:
            with contextlib.closing(sqlite3.connect(copy)) as target:
                self._connection.backup(target)
                # who held a study there holds none here: its process may live on
                target.execute("UPDATE tuner_leases SET owner = NULL")
                target.commit()
        except BaseException:
            remove(copy)
            raise
        return copy


def _inode(path: str | Path) -> tuple[int, int] | None:
    """What tells a file from another of its name; None where there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
