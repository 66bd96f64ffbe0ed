"""What the storage tells of failures, of parameters that go with them, and of the workers."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from sqlalchemy.engine import Engine

from storage import Database, contrasts, failures, timeline, workers
from storage.contrasts import contrast, kolmogorov_smirnov, total_variation
from storage.timeline import lanes
from tests.crowd import CROWD, fill_crowd

TRACEBACK = """Traceback (most recent call last):
  File "{folder}/work/train.py", line {line}, in objective
    return step(0x7f, {source})
RuntimeError: {message}
"""


def signature(message: str = "loss", *, folder: str = "/home/a", line: int = 3, source: str = "x") -> str:
    text = TRACEBACK.format(folder=folder, line=line, source=source, message=message)
    return failures.signature("exception", "RuntimeError", f"RuntimeError: {message}", text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("loss is 3.25 at step 7", "loss is 1e-9 at step 12"),
        ("<Model object at 0x7f12ab>", "<Model object at 0x7f99cd>"),
        ("no file 'a/b.pt'", "no file 'c.pt'"),
        ('no key "lr"', 'no key "width"'),
        ("node 3fa85f6457174562 left", "node 9c1185a5c5e9fc54 left"),
    ],
)
def test_what_differs_from_trial_to_trial_does_not_tell_failures_apart(one: str, other: str) -> None:
    assert signature(one) == signature(other)


def test_the_stack_the_class_and_the_words_tell_failures_apart() -> None:
    assert signature(folder="/home/a") == signature(folder="/mnt/b", source="y")  # the same program elsewhere
    assert len({signature(), signature(line=4), signature("it can't be, and won't"), signature("shape")}) == 4
    kinds = {failures.signature(reason, name, "", "") for reason in ("oom", "nan") for name in ("", "E")}
    assert len(kinds) == 4


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_distances_are_those_of_the_definitions(one: list[int], other: list[int]) -> None:
    def below(values: list[int], at: int) -> float:
        return sum(value <= at for value in values) / len(values)

    assert kolmogorov_smirnov(one, other) == pytest.approx(
        max(abs(below(one, at) - below(other, at)) for at in range(10))
    )
    shares = [abs(one.count(at) / len(one) - other.count(at) / len(other)) for at in range(10)]
    assert total_variation(one, other) == pytest.approx(sum(shares) / 2)


def test_the_bins_of_a_parameter_hold_every_trial_once() -> None:
    bad, good = [10**-at for at in (0.5, 1.0, 1.5)], [10 ** -(at / 7) for at in range(29)]
    ranged = contrast("lr", bad, good, FloatDistribution(1e-5, 1, log=True))
    assert ranged is not None
    assert (ranged.log, len(ranged.bins)) == (True, 10)
    assert (sum(one.failed for one in ranged.bins), sum(one.good for one in ranged.bins)) == (3, 29)
    widths = [one.high / one.low for one in ranged.bins]
    assert widths == pytest.approx([widths[0]] * 10)
    assert ranged.failed_quartiles[1] == pytest.approx(0.1)
    counted = contrast("layers", [1, 1, 2], [1, 2, 3], IntDistribution(1, 4))
    assert counted is not None
    assert [(one.label, one.failed, one.good) for one in counted.bins] == [
        ("1", 2, 1),
        ("2", 1, 1),
        ("3", 0, 1),
    ]
    many = contrast("seed", [0, 1, 2], [at % 40 for at in range(80)], CategoricalDistribution(range(40)))
    assert many is not None
    assert many.bins[-1].label == "29 others"
    assert sum(one.good for one in many.bins) == 80
    assert contrast("rare", [1], [1, 2, 3], IntDistribution(1, 4)) is None


def test_attempts_that_were_there_at_once_have_lanes_of_their_own() -> None:
    def at(minute: int) -> dt.datetime:
        return dt.datetime(2026, 1, 1, 0, minute)

    assert lanes([(at(5), at(9)), (at(0), at(10)), (at(1), at(2)), (at(2), at(3)), (at(20), at(21))]) == [
        1,
        0,
        1,
        1,
        0,
    ]
    assert lanes([]) == []


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    fill_crowd(url, 100)
    database = Database(url, create=False)
    yield database.engine
    database.dispose()


def test_a_crowd_is_read_on_either_database(engine: Engine) -> None:
    found = failures.groups(engine, CROWD)
    assert sorted((group.reason, group.count, group.retries) for group in found) == [
        ("device_failed", 0, 4),
        ("exception", 4, 0),
        ("exception", 6, 0),
        ("rank_lost", 5, 0),
    ]
    again = next(group for group in found if group.retries)
    assert again.retried == (73, 53, 33, 13)
    assert (again.hosts, again.devices) == ({"gpu-1": 4}, {"gpu-1: 0": 4, "gpu-1: 1": 4})
    assert again not in failures.of_trials(engine, CROWD)
    raised = next(group for group in found if group.count == 4)
    newest = failures.attempt(engine, CROWD, raised.newest, raised.attempt)
    assert newest is not None
    assert newest.traceback.startswith("Traceback")
    assert failures.groups(engine, "nothing") == []
    assert failures.attempt(engine, CROWD, 10**6, 1) is None

    everything = contrasts.contrasts(engine, CROWD)
    assert (everything.failed, everything.good) == (15, 77)
    (first, *_) = contrasts.contrasts(engine, CROWD, raised.numbers).params
    assert (first.name, first.log, first.failed) == ("lr", True, 4)
    assert first.distance > first.chance

    now = workers.now(engine, CROWD)
    assert (now.total, now.claimed, now.foreign) == (7, 1, 0)
    assert [one.number for one in now.open] == list(range(93, 100))
    assert (now.open[0].ranks, now.open[1].step, now.open[1].ranks[1].devices) == ((), 4, ("1",))
    assert {one.message.partition(" does")[0] for one in now.aside} == {"GPU 1 of gpu-1"}

    whole = timeline.timeline(engine, CROWD)
    assert [host.host for host in whole.hosts] == ["gpu-0", "gpu-1", "gpu-2", "gpu-3"]
    assert all(0.9 < host.busy <= 1 < host.at_once < 8 for host in whole.hosts)
    assert {span.state for span in whole.spans} == {"COMPLETE", "PRUNED", "FAIL", "RUNNING"}
    for place in {(span.host, span.lane) for span in whole.spans}:
        there = sorted((one.begin, one.end) for one in whole.spans if (one.host, one.lane) == place)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(there))
    short = timeline.timeline(engine, CROWD, 10)
    assert 0 < short.attempts < whole.attempts
    assert short.begin is not None
    assert min(span.begin for span in short.spans) >= short.begin
    assert timeline.timeline(engine, "nothing").attempts == 0
