"""Studies outside a run: create, load, and the checkpoint of the best trial."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

import optuna

from storage import Database, mask_url, reads, studies
from tuner import samplers, store
from tuner.errors import BadInput, StudyExists, StudyNotFound
from tuner.plain import shortened

if TYPE_CHECKING:
    from tuner.checkpoint import Checkpoint

__all__ = ["best_checkpoint", "check_seed", "create_study", "database_of", "load_study", "new_seed"]

SamplerSpec = str | optuna.samplers.BaseSampler | None
PrunerSpec = str | optuna.pruners.BasePruner | None


def create_study(
    study_name: str,
    *,
    storage: str | None = None,
    direction: str | None = None,
    directions: Sequence[str] | None = None,
    sampler: SamplerSpec = None,
    pruner: PrunerSpec = None,
    seed: int | None = None,
    load_if_exists: bool = False,
) -> optuna.Study:
    """A new study in a database, or the one that is there already.

    Args:
        study_name: unique in the database.
        storage: database URL; default ``$TUNER_STORAGE``, else that of ``tuner.toml`` (:mod:`tuner.config`),
            else ``sqlite:///tuner.db``.
        direction: ``"minimize"`` (the default) or ``"maximize"``; ``directions`` for several objectives.
        sampler, pruner: a name (``"tpe"``, ``"hyperband"``), a call as text
            (``"tpe(n_startup_trials=20)"``), or Optuna's own object. What is given as text is kept
            in the database for :func:`tuner.resume`.
        seed: of the study; default: drawn once and kept, or from the seed of a sampler object. Each
            trial's draws and its own ``trial.seed`` follow from it and the trial's number.
        load_if_exists: return the study of that name instead of raising; its directions must agree.

    Returns:
        An ordinary ``optuna.Study``; plain Optuna opens the same database.

    Raises:
        StudyExists: a study of that name is there.
        BadInput: a name, direction, sampler, pruner or seed that cannot be used.
        StoreUnavailable: the database cannot be reached.

    Example:
        >>> study = tuner.create_study("digits", storage="sqlite:///tuner.db", direction="maximize",
        ...                            sampler="tpe(n_startup_trials=20)", pruner="hyperband", seed=1)
        >>> study.study_name, type(study.sampler).__name__
        ('digits', 'TPESampler')
    """
    wanted = _directions(direction, directions)
    check_seed(seed)
    texts = {
        "sampler": samplers.text_of("tpe" if sampler is None else sampler),
        "pruner": samplers.text_of("median" if pruner is None else pruner),
    }
    samplers.sampler(sampler, 0, len(wanted))  # refuses a bad name before anything is written
    samplers.pruner(pruner)
    with store.errors():
        studies.check_name(study_name)
    database = store.open_database(storage, create=True)
    with store.errors():
        record = studies.create(
            database, study_name, wanted, seed=new_seed(sampler) if seed is None else seed, **texts
        )
        if record is None and not load_if_exists:
            where = f", storage={storage!r}" if storage is not None and mask_url(storage) == storage else ""
            raise StudyExists(
                f"study {study_name!r} exists already in {database}; choose another name, "
                f"pass load_if_exists=True, or go on with tuner.resume({study_name!r}{where})"
            )
        if record is None:
            record = studies.find(database, study_name)
            if record is None:
                raise _deleted(study_name)
            if record.directions != wanted:
                raise BadInput(
                    f"study {study_name!r} exists already, to {' and '.join(record.directions)}, not to "
                    f"{' and '.join(wanted)}; give its own direction, or choose another name"
                )
    return _study(database, record, sampler, pruner)


def load_study(study_name: str, *, storage: str | None = None) -> optuna.Study:
    """The study of that name, to read, enqueue and annotate.

    Raises:
        StudyNotFound: there is none; the message names those that are there.
        StoreUnavailable: the database cannot be reached.

    Example:
        >>> study = tuner.create_study("loaded", storage="sqlite:///tuner.db")
        >>> tuner.load_study("loaded", storage="sqlite:///tuner.db").enqueue_trial({"lr": 0.1})
    """
    database = store.open_database(storage)
    with store.errors():
        record = studies.find(database, study_name)
        if record is None:
            raise unknown(database, study_name)
    return _study(database, record, None, None)


def best_checkpoint(study: optuna.Study) -> Checkpoint | None:
    """The newest valid checkpoint of the study's best trial, as rank 0 saved it; None without one.

    Raises:
        BadInput: no trial is complete yet; the study has several objectives, or lives in memory.

    Example:
        >>> def objective(trial):
        ...     x = trial.suggest_float("x", 0, 1)
        ...     trial.save_checkpoint({"weights": [x, 1 - x]}, step=3)
        ...     return x
        >>> study = tuner.create_study("kept", storage="sqlite:///tuner.db", seed=1)
        >>> study = tuner.optimize(study, objective, n_trials=2, executor="inline")
        >>> tuner.best_checkpoint(study).state["weights"][0] == study.best_value
        True
    """
    from tuner import checkpoint
    from tuner.assignment import Shard

    if len(study.directions) > 1:
        raise BadInput("best_checkpoint: a study with several objectives has no single best trial")
    database = database_of(study)
    try:
        best = study.best_trial
    except ValueError:  # Optuna's, which names neither the study nor what is missing
        raise BadInput(f"best_checkpoint: study {study.study_name!r} has no complete trial yet") from None
    with store.errors():
        found = reads.checkpoints(database.engine, study.study_name, best.number)
    for first in found:
        shards = tuple(
            Shard(rank=part.rank, path=part.path, digest=part.digest, size=part.size)
            for part in sorted(found, key=lambda part: part.rank)
            if (part.attempt, part.step) == (first.attempt, first.step)
        )
        if first.rank == 0 and first.whole and all(map(checkpoint.verify, shards)):
            return checkpoint.Checkpoint(step=first.step, state=checkpoint.load(shards[0]), parts=shards)
    return None


def database_of(study: optuna.Study) -> Database:
    """The database that a study of Optuna's lives in.

    Raises:
        BadInput: in memory, or in a storage that is no SQL database.
    """
    backend = getattr(study._storage, "_backend", study._storage)
    url = getattr(backend, "url", None)
    if not isinstance(backend, optuna.storages.RDBStorage) or not isinstance(url, str):
        raise BadInput(
            f"study {study.study_name!r} has no SQL database ({type(backend).__name__}): "
            'create it with storage="sqlite:///tuner.db", so that nothing is lost'
        )
    return store.open_database(url, create=True)


def check_seed(seed: object) -> None:
    """Refuse what is no seed of a study; None is one that is drawn.

    Raises:
        BadInput: names it.
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise BadInput(f"seed={seed!r}: give a whole number from 0 to 2^63 - 1")


def new_seed(sampler: SamplerSpec) -> int:
    """A seed that is drawn once and kept in the store; of an object of Optuna's, from its own seed."""
    found = samplers.seed_of(sampler) if isinstance(sampler, optuna.samplers.BaseSampler) else None
    return secrets.randbelow(2**31) if found is None else found


def unknown(database: Database, name: str) -> StudyNotFound:
    """The error for a study that is not there: it names those that are."""
    known = studies.names(database)
    shown = ", ".join(one if one.isprintable() else repr(one) for one in known[:10])
    shown += " ..." if len(known) > 10 else ""
    return StudyNotFound(
        f"there is no study {shortened(name)} in {database}; "
        + (f"it has: {shown}" if known else "it has no study yet")
    )


def _study(
    database: Database, record: studies.StudyRecord, sampler: SamplerSpec, pruner: PrunerSpec
) -> optuna.Study:
    seed = record.seed if record.seed is not None else 0
    objectives = len(record.directions)
    chosen = samplers.sampler(sampler if sampler is not None else record.sampler, seed, objectives)
    pruning = samplers.pruner(pruner if pruner is not None else record.pruner)
    backend = database.optuna_storage()
    try:
        return optuna.load_study(study_name=record.name, storage=backend, sampler=chosen, pruner=pruning)
    except KeyError:
        raise _deleted(record.name) from None


def _deleted(name: str) -> StudyNotFound:
    return StudyNotFound(f"study {name!r} was deleted by another program meanwhile")


def _directions(direction: str | None, directions: Sequence[str] | None) -> tuple[str, ...]:
    if direction is not None and directions is not None:
        raise BadInput("give direction or directions, not both")
    given = [direction or "minimize"] if directions is None else list(directions)
    wanted = tuple(getattr(one, "name", str(one)).lower() for one in given)
    if not wanted:
        raise BadInput("directions=[]: give at least one direction")
    for one in wanted:
        if one not in ("minimize", "maximize"):
            raise BadInput(f"direction {one!r}: choose 'minimize' or 'maximize'")
    return wanted
