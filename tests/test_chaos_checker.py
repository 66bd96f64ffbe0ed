"""The checker of the chaos tests: silent on a store that kept its word, and on no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from storage import Database
from tests.chaos.checker import check
from tests.chaos.history import History, Record, read


@pytest.fixture
def study(sqlite_url: str) -> optuna.Study:
    """Three trials: complete with two reports, failed, and one that was added with a tag."""
    Database(sqlite_url).dispose()
    found = optuna.create_study(study_name="s", storage=sqlite_url)
    first, second = found.ask(), found.ask()
    first.report(0.5, 0)
    first.report(0.25, 1)
    found.tell(first, 0.25)
    found.tell(second, state=TrialState.FAIL)
    found.add_trial(create_trial(value=1.0, user_attrs={"tag": "t"}))
    return found


def done(name: str, came: str = "ok", found: dict[str, Any] | None = None, **given: Any) -> Record:
    at = next(done.clock)  # type: ignore[attr-defined]
    return Record(
        program="one", name=name, given=given, began=at, state=came, ended=at + 0.5, found=found or {}
    )


done.clock = iter(range(10**6))  # type: ignore[attr-defined]


def history() -> list[Record]:
    return [
        done("create", found={"number": 0}),
        done("create", found={"number": 1}),
        done("report", number=0, step=0, value=0.5),
        done("report", number=0, step=1, value=0.25),
        done("tell", number=0, state="COMPLETE", value=0.25),
        done("tell", number=1, state="FAIL", value=None),
        done("add", tag="t"),
    ]


def test_a_store_that_kept_its_word(study: optuna.Study, sqlite_url: str) -> None:
    assert check(history(), sqlite_url, "s", n=3) == []


Change = Callable[[list[Record]], None]


def lost(records: list[Record]) -> None:
    records.append(done("create", found={"number": 3}))


def lost_report(records: list[Record]) -> None:
    records.insert(4, done("report", number=0, step=2, value=0.75))


def other_report(records: list[Record]) -> None:
    records[3].given["value"] = 0.125


def unasked(records: list[Record]) -> None:
    del records[1]


def twice(records: list[Record]) -> None:
    records[1].found["number"] = 0


def reversed_state(records: list[Record]) -> None:
    records[5].given.update(state="COMPLETE", value=3.0)


def refused_and_there(records: list[Record]) -> None:
    records[6].state = "fail"


def told_twice(records: list[Record]) -> None:
    records.append(done("tell", number=1, state="FAIL", value=None))


@pytest.mark.parametrize(
    "change",
    [lost, lost_report, other_report, unasked, twice, reversed_state, refused_and_there, told_twice],
)
def test_a_broken_promise_is_named(study: optuna.Study, sqlite_url: str, change: Change) -> None:
    records = history()
    change(records)
    assert check(records, sqlite_url, "s", n=3) != []


def test_what_is_unknown_may_be_there_or_not(study: optuna.Study, sqlite_url: str) -> None:
    records = history()
    records[1].state, records[1].found = "unknown", {}
    records.append(done("create", came="unknown"))
    records.append(done("report", came="unknown", number=1, step=5, value=9.0))
    assert check(records, sqlite_url, "s", n=3) == []


def test_a_trial_too_many_or_still_running_is_named(study: optuna.Study, sqlite_url: str) -> None:
    study.ask()
    found = check([*history(), done("create", found={"number": 3})], sqlite_url, "s", n=3)
    assert found == ["4 trials instead of 3", "trial 3 is left RUNNING"]


def test_a_history_survives_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    written = History(tmp_path / "one.history")
    with written.operation("create") as found:
        found["number"] = 7
    with pytest.raises(KeyError), written.operation("tell", number=7):
        raise KeyError("no")
    with (tmp_path / "one.history").open("a") as file:
        file.write(json.dumps({"kind": "invoke"})[:9])
    created, told = read([tmp_path / "one.history"])
    assert (created.state, created.found) == ("ok", {"number": 7})
    assert (told.state, told.given) == ("fail", {"number": 7})
