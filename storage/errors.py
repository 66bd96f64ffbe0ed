"""What storage raises; ``tuner`` maps each to a public error of its own.

::

    StorageError
    ├── Unavailable     the database cannot be reached, or is not to be written by this version
    ├── Displaced       the file of a SQLite database was removed or replaced while it was open
    ├── UnknownStudy    no study of that name, or it went away under a live driver
    ├── Held            another live driver holds the study's lease
    ├── LeaseLost       another driver took the lease: nothing was changed
    └── Refused         a value that the database cannot hold (NUL, too long, out of range)
"""

from __future__ import annotations

__all__ = ["Displaced", "Held", "LeaseLost", "Refused", "StorageError", "Unavailable", "UnknownStudy"]


class StorageError(Exception):
    """The base of storage's errors; the message is one line for a person.

    Example:
        >>> try:
        ...     storage.SqlStorage("sqlite:////nowhere/tuner.db")
        ... except storage.StorageError as error:
        ...     print(type(error).__name__)
        Unavailable
    """


class Unavailable(StorageError):
    """The database cannot be reached, or its schema is not ours to write.

    Attributes:
        passing: trying again can help: the connection, a lock, a full disk.

    Example:
        >>> storage.SqlStorage("sqlite:////nowhere/tuner.db")
        Traceback (most recent call last):
        storage.errors.Unavailable: ...
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class Displaced(StorageError):
    """The file of a SQLite database was removed or replaced while it was open: it takes nothing more.

    Where this process held a study, the message names a copy of all that was committed.

    Example:
        >>> database = storage.Database("sqlite:///moved.db")
        >>> moved = database.file.rename("elsewhere.db")
        >>> with database.read() as connection:
        ...     connection.execute(sqlalchemy.text("SELECT 1"))
        Traceback (most recent call last):
        storage.errors.Displaced: the database file ...moved.db was removed while it was in use; ...
    """


class UnknownStudy(StorageError):
    """No study of that name is in the database (any more).

    Example:
        >>> with storage.SqlStorage("sqlite:///tuner.db").lease("nothing"):
        ...     pass
        Traceback (most recent call last):
        storage.errors.UnknownStudy: ...
    """


class Held(StorageError):
    """Another live driver holds the study.

    Example:
        >>> optuna_storage = storage.SqlStorage("sqlite:///tuner.db")
        >>> study = optuna.create_study(study_name="held-twice", storage=optuna_storage)
        >>> with optuna_storage.lease("held-twice"), storage.SqlStorage("sqlite:///tuner.db").lease("held-twice"):
        ...     pass
        Traceback (most recent call last):
        storage.errors.Held: ...
    """


class LeaseLost(StorageError):
    """Another driver took the study over; nothing of this transaction was written.

    Example:
        >>> issubclass(storage.LeaseLost, storage.StorageError)  # catch it where a block holds a lease
        True
    """


class Refused(StorageError, ValueError):
    """A value that cannot be stored on every database.

    Example:
        >>> optuna_storage = storage.SqlStorage("sqlite:///tuner.db")
        >>> study = optuna.create_study(study_name="refused", storage=optuna_storage)
        >>> study.set_user_attr("note", "a NUL: " + chr(0))
        Traceback (most recent call last):
        storage.errors.Refused: ...
    """
