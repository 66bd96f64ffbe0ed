"""The SQL store: Optuna's tables and ours, the lease, the write path, the reads.

It imports nothing of the rest of Tuner. SQLAlchemy and Alembic are used here and nowhere else. The
names below are imported when they are first used: a worker, which never opens a database, may
import a module of this package without them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.database import Database
    from storage.errors import Displaced, Held, LeaseLost, Refused, StorageError, Unavailable, UnknownStudy
    from storage.held import HeldStudy
    from storage.lease import Lease
    from storage.masking import mask_url
    from storage.sqlstorage import SqlStorage
    from storage.studies import StudyRecord

__all__ = [
    "Database",
    "Displaced",
    "Held",
    "HeldStudy",
    "Lease",
    "LeaseLost",
    "Refused",
    "SqlStorage",
    "StorageError",
    "StudyRecord",
    "Unavailable",
    "UnknownStudy",
    "mask_url",
]

_HOMES = {
    "storage.database": ("Database",),
    "storage.held": ("HeldStudy",),
    "storage.lease": ("Lease",),
    "storage.masking": ("mask_url",),
    "storage.sqlstorage": ("SqlStorage",),
    "storage.studies": ("StudyRecord",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'storage' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME.get(name, "storage.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
