"""The SQL store: Optuna's tables and ours, the lease, the write path, the reads.

It imports nothing of the rest of Tuner. SQLAlchemy and Alembic are used here and nowhere else.
"""

from __future__ import annotations

from storage.database import Database
from storage.errors import Held, LeaseLost, Refused, StorageError, Unavailable, UnknownStudy
from storage.held import HeldStudy
from storage.lease import Lease
from storage.masking import mask_url
from storage.sqlstorage import SqlStorage
from storage.studies import StudyRecord

__all__ = [
    "Database",
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
