"""The promises of the store, checked over a history and the database that is left: pure, but for reading.

Operations that it knows: ``create`` (finds ``number``), ``report`` (given ``number``, ``step``,
``value``), ``flush`` (everything that the same program reported before is acknowledged), ``tell``
(given ``number``, ``state``, ``value``), ``add`` (given ``tag``, a finished trial).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import optuna
import sqlalchemy as sa

from tests.chaos.history import Record

__all__ = ["check", "check_rows", "check_trials"]


def check(records: Sequence[Record], url: str, study_name: str, *, n: int | None = None) -> list[str]:
    """The violated promises, one line each; nothing for a store that kept its word.

    Args:
        n: the budget; the faults are over and the study has drained to exactly this many trials.
    """
    trials = _trials(url, study_name)
    return [
        *_numbers(trials, n),
        *_creations(records, trials),
        *_states(records, trials),
        *_reports(records, trials),
        *check_rows(url, study_name),
    ]


def check_trials(url: str, study_name: str, *, n: int | None = None) -> list[str]:
    """The promises that need no history: numbers and states."""
    return list(_numbers(_trials(url, study_name), n))


def _trials(url: str, study_name: str) -> list[optuna.trial.FrozenTrial]:
    """As plain Optuna reads them."""
    storage = optuna.storages.RDBStorage(url, skip_table_creation=True)
    try:
        return storage.get_all_trials(storage.get_study_id_from_name(study_name), deepcopy=False)
    finally:
        storage.engine.dispose()


def _numbers(trials: Sequence[optuna.trial.FrozenTrial], n: int | None) -> Iterator[str]:
    """1, 2, 7: numbers are dense; at the end there are N, all finished."""
    numbers = [trial.number for trial in trials]
    if numbers != list(range(len(trials))):
        yield f"numbers are not dense: {numbers}"
    if n is None:
        return
    if len(trials) != n:
        yield f"{len(trials)} trials instead of {n}"
    for trial in trials:
        if not trial.state.is_finished():
            yield f"trial {trial.number} is left {trial.state.name}"


def _creations(records: Sequence[Record], trials: Sequence[optuna.trial.FrozenTrial]) -> Iterator[str]:
    """3: what was acknowledged is there, and nothing is there twice."""
    created = [record for record in records if record.name == "create"]
    known = [record.found["number"] for record in created if record.state == "ok"]
    for number, count in Counter(known).items():
        if count > 1:
            yield f"trial {number} was given to {count} callers"
        if number >= len(trials):
            yield f"trial {number} was acknowledged and is not there"
    tags = Counter(trial.user_attrs["tag"] for trial in trials if "tag" in trial.user_attrs)
    adds = {record.given["tag"]: record for record in records if record.name == "add"}
    for tag, record in adds.items():
        if record.state == "ok" and not tags[tag]:
            yield f"the added trial {tag} was acknowledged and is not there"
        if record.state == "fail" and tags[tag]:
            yield f"the added trial {tag} was refused and is there"
    for tag, count in tags.items():
        if count > 1:
            yield f"the added trial {tag} is there {count} times"
    doubtful = sum(record.state != "ok" for record in created)
    surplus = len(trials) - sum(tags.values()) - len(set(known)) - doubtful
    if surplus > 0:
        yield f"{surplus} trials more than were ever asked for"


def _states(records: Sequence[Record], trials: Sequence[optuna.trial.FrozenTrial]) -> Iterator[str]:
    """2, 3: one terminal state, the acknowledged one, and never reversed."""
    told: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.name == "tell":
            told[record.given["number"]].append(record)
    by_number = {trial.number: trial for trial in trials}
    for number, tells in told.items():
        sure = [record for record in tells if record.state == "ok"]
        if len(sure) > 1:
            yield f"trial {number} was told {len(sure)} times, each time acknowledged"
        trial = by_number.get(number)
        if trial is None:
            continue
        word = (trial.state.name, trial.values[0] if trial.values else None)
        for record in sure:
            if (record.given["state"], record.given["value"]) != word:
                yield f"trial {number} was acknowledged as {record.given}, the database says {word}"
        possible = {
            (record.given["state"], record.given["value"]) for record in tells if record.state != "fail"
        }
        if trial.state.is_finished() and word not in possible:
            yield f"trial {number} is {word}, which nobody told"


def _reports(records: Sequence[Record], trials: Sequence[optuna.trial.FrozenTrial]) -> Iterator[str]:
    """3, 9: acknowledged reports are there, and there are no others."""
    sent: dict[tuple[int, int], list[float]] = defaultdict(list)
    acknowledged: dict[tuple[int, int], float] = {}
    waiting: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.name == "report":
            sent[record.given["number"], record.given["step"]].append(record.given["value"])
            if record.state == "ok":
                waiting[record.program].append(record)
        elif record.name in ("flush", "tell", "create") and record.state == "ok":
            for report in waiting.pop(record.program, []):
                acknowledged[report.given["number"], report.given["step"]] = report.given["value"]
    there = {
        (trial.number, step): value for trial in trials for step, value in trial.intermediate_values.items()
    }
    for (number, step), value in acknowledged.items():
        found = there.get((number, step))
        if found is None or not math.isclose(found, value):
            yield f"report {value} of trial {number} at step {step} was acknowledged; there is {found}"
    for (number, step), value in there.items():
        if value not in sent.get((number, step), []):
            yield f"report {value} of trial {number} at step {step} was sent by nobody"


def check_rows(url: str, study_name: str) -> Iterator[str]:
    """The promises 4, 8 and 14: attempts of ours, and the file."""
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                found = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
                if found != "ok":
                    yield f"the file is damaged: {found}"
            rows = connection.execute(
                sa.text(
                    "SELECT a.trial_id, a.number, a.attempt, a.state, t.state AS trial_state, a.epoch, "
                    "l.owner FROM tuner_attempts a JOIN trials t ON t.trial_id = a.trial_id "
                    "JOIN studies s ON s.study_id = t.study_id "
                    "LEFT JOIN tuner_leases l ON l.study_uid = a.study_uid "
                    "WHERE s.study_name = :name ORDER BY a.number, a.attempt"
                ),
                {"name": study_name},
            ).all()
    finally:
        engine.dispose()
    epochs: dict[int, list[int]] = defaultdict(list)
    attempts: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        attempts[row.number].append(row.attempt)
        epochs[row.number].append(row.epoch)
        if row.state != "ended" and (row.owner is None or row.trial_state not in ("RUNNING", "WAITING")):
            yield f"attempt {row.attempt} of trial {row.number} is {row.state} and nobody's"
    for number, found in attempts.items():
        if found != list(range(1, len(found) + 1)):
            yield f"trial {number} has the attempts {found}"
        if epochs[number] != sorted(epochs[number]):
            yield f"the attempts of trial {number} were written in the epochs {epochs[number]}"
