"""No schedule of what ranks do leaves one waiting for ever, or lets two get different verdicts."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.rank_program import BOUND
from tuner.dispatch.group import RankEnding, decide, exit_outcome
from tuner.messages import Finished, decode
from tuner.outcome import Outcome, Reason

Run = Callable[[dict[str, Any]], dict[str, Any]]

EXAMPLES = int(os.environ.get("TUNER_EXAMPLES", "12"))
"""Schedules beside those that are written down; ``make chaos`` asks for more."""

FATES = ("return", "raise", "SIGKILL", "SIGSTOP")
CAUSES = {"raise": Reason.EXCEPTION, "SIGKILL": Reason.RANK_LOST, "SIGSTOP": Reason.RANK_LOST}
NORMAL = (Reason.COMPLETE, Reason.PRUNED, Reason.INTERRUPTED)

actions = st.one_of(
    st.sampled_from([["report"], ["prune"], ["prune"], ["stop"]]),
    st.sampled_from([1, 5, 20, 50, 150]).map(lambda milliseconds: ["delay", milliseconds]),
)


@st.composite
def schedules(draw: st.DrawFn) -> dict[str, Any]:
    """Blocks with a collective after each: in a block ranks do the same, or each what it likes. At most one
    rank has a fate, at any point.
    """
    size = draw(st.integers(2, 3))
    ranks: list[list[Any]] = [[] for _ in range(size)]
    for _ in range(draw(st.integers(1, 5))):
        same = draw(st.booleans())
        block = draw(st.lists(actions, max_size=4))
        for rank in ranks:
            rank += block if same else draw(st.lists(actions, max_size=4))
            rank.append(["reduce"])
    fate = draw(st.sampled_from([None, *FATES]))
    if fate is not None:
        rank = draw(st.sampled_from(ranks))
        rank.insert(draw(st.integers(0, len(rank))), [fate])
    verdicts = draw(st.lists(st.sampled_from([False, False, False, True]), min_size=30, max_size=30))
    return {"ranks": ranks, "verdicts": verdicts, "stop_at": draw(st.none() | st.integers(0, 12))}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Carry out a schedule; see :mod:`tests.rank_program`."""
    folder = tmp_path_factory.mktemp("ranks")
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.rank_program", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert program.stdin is not None
    assert program.stdout is not None

    def run(schedule: dict[str, Any]) -> dict[str, Any]:
        program.stdin.write(json.dumps(schedule) + "\n")
        program.stdin.flush()
        assert select.select([program.stdout], [], [], 3 * BOUND)[0], "the program itself hangs"
        return json.loads(program.stdout.readline())

    yield run
    program.stdin.close()
    assert program.wait(BOUND) == 0


def endings(result: dict[str, Any]) -> list[RankEnding]:
    """How the ranks ended, in order of time: by their last words, else their exit codes."""
    made = []
    for rank, code in result["ended"]:
        last = result["said"][rank][-1:]
        if last and last[0][0] == "finished":
            finished = decode(last[0][1])
            assert isinstance(finished, Finished)
            assert code == 0
            made.append(RankEnding(rank=rank, outcome=finished.outcome, collateral=finished.collateral))
        else:
            made.append(RankEnding(rank=rank, outcome=exit_outcome(code, "")))
    return made


def fate(result: dict[str, Any]) -> tuple[int, str] | None:
    """The rank that met its fate, and which."""
    met = [(rank, one[1]) for rank, said in enumerate(result["said"]) for one in said if one[0] == "fate"]
    return met[0] if met else None


def verdicts(result: dict[str, Any]) -> dict[tuple[str, int], set[bool]]:
    """What the ranks were told, by topic and ordinal."""
    told: dict[tuple[str, int], set[bool]] = {}
    for said in result["said"]:
        for topic, *what in said:
            if topic in ("prune", "stop"):
                told.setdefault((topic, what[0]), set()).add(what[1])
    return told


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@example({"ranks": [[["reduce"]], [["prune"]] * 30 + [["reduce"]]], "verdicts": [], "stop_at": None})
@example(
    {
        "ranks": [[["delay", 300], ["report"], ["prune"], ["reduce"]], [["prune"], ["reduce"]]],
        "verdicts": [True],
        "stop_at": None,
    }
)
@example({"ranks": [[["SIGSTOP"], ["prune"]], [["prune"]]], "verdicts": [False], "stop_at": None})
@given(schedule=schedules())
def test_every_schedule_ends_with_one_verdict_and_the_right_cause(run: Run, schedule: dict[str, Any]) -> None:
    result = run(schedule)
    assert result["stuck"] == [], "ranks that waited for ever"
    for (topic, ordinal), told in verdicts(result).items():
        assert len(told) == 1, f"{topic} {ordinal}: the ranks differ"
        if topic == "prune" and told == {True}:
            assert schedule["verdicts"][ordinal - 1], "nobody but the pruner says True"
    outcome = decide(endings(result), None)
    first = [one.outcome for one in endings(result) if one.rank == 0]
    if first[0].reason in NORMAL:
        assert outcome == first[0], "rank 0's normal end stands"
    else:
        assert_cause(outcome, fate(result))


def assert_cause(outcome: Outcome, met: tuple[int, str] | None) -> None:
    """Where rank 0 did not end as it should, the rank to blame is the one that met a fate."""
    assert met is not None, f"no rank was at fault, and yet: {outcome}"
    rank, fate = met
    if fate == "return":
        assert f"rank {rank} returned while the others went on" in outcome.message
    else:
        assert outcome.reason is CAUSES[fate]
        assert f"rank {rank} " in outcome.message
