"""Our tables, which stand beside Optuna's in one database; prefixed ``tuner_``.

Rows hang on the study's uid, a random text kept in the study's system attributes, never on
``study_id``: SQLite gives that number again after a delete. There are no foreign keys on
Optuna's tables, since on PostgreSQL they would make Optuna's own delete fail. Times are naive
UTC, as Optuna 5 stores them; no decision depends on them. JSON columns are text.

Optuna's own tables are reached through :data:`optuna_tables`; Optuna creates and owns them.
"""

from __future__ import annotations

from optuna.storages._rdb import models as _optuna_models
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = [
    "HOME_KEY",
    "OPTUNA_SCHEMA",
    "RETRY_KEY",
    "UID_KEY",
    "attempts",
    "checkpoints",
    "commands",
    "events",
    "leases",
    "metadata",
    "metrics",
    "optuna_base",
    "optuna_tables",
    "studies",
    "superseded",
]

OPTUNA_SCHEMA = 12
"""The schema version of Optuna's tables that this version writes to."""

UID_KEY = "tuner:uid"
"""The study system attribute that holds our uid."""

HOME_KEY = "tuner:study_id"
"""The study system attribute that holds the id of the study that the uid is of, to tell a copy."""

RETRY_KEY = "tuner:retry_of"
"""The trial system attribute that holds the number of the trial whose retry this one is."""

optuna_base: MetaData = _optuna_models.BaseModel.metadata
"""Optuna's models."""

optuna_tables = optuna_base.tables
"""Optuna's tables by name: studies, trials, trial_params, trial_intermediate_values, ..."""

metadata = MetaData()

# SQLite autoincrements INTEGER primary keys only; PostgreSQL wants 64 bits for a log.
_Serial = BigInteger().with_variant(Integer, "sqlite")

studies = Table(
    "tuner_studies",
    metadata,
    Column("study_uid", String(32), primary_key=True),
    Column("seed", BigInteger, nullable=False),
    Column("sampler", Text),  # "tpe(n_startup_trials=20)"; NULL: an object that no text describes
    Column("pruner", Text),
    Column("objective", Text),  # JSON: module, name, file, digest; NULL: sent by value
    Column("settings", Text, nullable=False),  # JSON: n_trials, resources, retry, timeouts, ...
    Column("created_at", DateTime, nullable=False),
    Column("stop_reason", Text),  # why the last run ended
    Column("driving", Text),  # JSON: phase, why, most; of the driver that holds the lease
)

leases = Table(
    "tuner_leases",
    metadata,
    Column("study_uid", String(32), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("owner", Text),  # JSON: host, boot_id, pid_namespace, pid, start_time, run; NULL: released
    Column("renewals", BigInteger, nullable=False),  # a taker watches this counter, no clock
    Column("applied_seq", BigInteger, nullable=False),  # the fence and the replay guard
    Column("renewed_at", DateTime, nullable=False),  # for people only
)

attempts = Table(
    "tuner_attempts",
    metadata,
    Column("attempt_id", _Serial, primary_key=True, autoincrement=True),
    Column("study_uid", String(32), nullable=False, index=True),
    Column("trial_id", Integer, nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),  # 1 for the first try
    Column("state", String(16), nullable=False, index=True),  # claimed | running | ended
    Column("epoch", BigInteger, nullable=False),
    Column("reason", String(32)),  # tuner.outcome.Reason once ended
    Column("charged", Boolean),  # counts against Retry.max_failures
    Column("message", Text),
    Column("exception", Text),
    Column("traceback", Text),
    Column("log_tail", Text),
    Column("created_at", DateTime, nullable=False),
    Column("started_at", DateTime),
    Column("ended_at", DateTime),
    Column("resumed_step", Integer),  # the checkpoint's step that it started from; NULL: from nothing
    Column("ranks", Text),  # JSON list: rank, host, node, pid, devices
    Column("relative", Text),  # JSON: the sampler's joint draw, name -> [internal value, distribution]
    Column("attributes", Text),  # JSON: the trial's attributes before it began, for a retry
    Column("provenance", Text),  # JSON: git, digests, versions, arguments, host, seed
    UniqueConstraint("trial_id", "attempt", "study_uid"),
)

superseded = Table(
    "tuner_superseded_values",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("study_uid", String(32), nullable=False, index=True),
    Column("trial_id", Integer, nullable=False, index=True),
    Column("attempt", Integer, nullable=False),  # the attempt that reported it
    Column("step", Integer, nullable=False),
    Column("value", Float(precision=53)),
    Column("value_type", String(7), nullable=False),
)

checkpoints = Table(
    "tuner_checkpoints",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("study_uid", String(32), nullable=False, index=True),
    Column("trial_id", Integer, nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("world_size", Integer, nullable=False),  # whole only when all ranks are here
    Column("path", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("attributes", Text),  # JSON, rank 0: the trial's attributes at this moment, for a retry
    Column("created_at", DateTime, nullable=False),
    UniqueConstraint("study_uid", "trial_id", "attempt", "step", "rank"),
)

metrics = Table(
    "tuner_metrics",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("study_uid", String(32), nullable=False, index=True),
    Column("trial_id", Integer, nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("name", String(512), nullable=False),
    Column("step", Integer, nullable=False),
    Column("value", Float(precision=53)),  # NULL with value_type NAN
    Column("value_type", String(7), nullable=False),  # FINITE | INF_POS | INF_NEG | NAN
)

commands = Table(
    "tuner_commands",
    metadata,
    Column("command_id", _Serial, primary_key=True, autoincrement=True),
    Column("study_uid", String(32), nullable=False, index=True),
    Column("name", String(32), nullable=False),  # see storage.commands
    Column("arguments", Text, nullable=False),  # JSON
    Column("author", Text, nullable=False),  # host:pid of the command line, or the dashboard's user
    Column("created_at", DateTime, nullable=False),
    Column("done_at", DateTime),
    Column("result", Text),
)

events = Table(
    "tuner_events",
    metadata,
    Column("event_id", _Serial, primary_key=True, autoincrement=True),
    Column("study_uid", String(32), nullable=False, index=True),
    Column("trial_id", Integer, index=True),
    Column("attempt", Integer),
    Column("epoch", BigInteger, nullable=False),
    Column(
        "kind", String(32), nullable=False
    ),  # claimed, started, pruned, ended, retry, resumed, stopped, ...
    Column("detail", Text, nullable=False),  # JSON: the reason and the inputs of the decision
    Column("created_at", DateTime, nullable=False),
)
