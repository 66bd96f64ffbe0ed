"""How the ends of ranks become one outcome, and whether a trial fits: pure functions."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from tuner.dispatch.capacity import described, fitting, shortage
from tuner.dispatch.group import RankEnding, decide, exit_outcome
from tuner.outcome import Outcome, Reason

COMPLETE = Outcome(reason=Reason.COMPLETE, values=(0.5,))
RAISED = Outcome(reason=Reason.EXCEPTION, message="ValueError: no", exception="ValueError", traceback="...")
CLOSED = Outcome(reason=Reason.EXCEPTION, message="RuntimeError: connection closed by peer")
KILLED = exit_outcome(-9, "last words")
ASKED = Outcome(reason=Reason.TIMEOUT, message="ran longer than trial_timeout=3 s")


def ending(rank: int, outcome: Outcome, collateral: bool = False) -> RankEnding:
    return RankEnding(rank=rank, outcome=outcome, collateral=collateral)


@pytest.mark.parametrize("reason", [Reason.COMPLETE, Reason.PRUNED, Reason.INTERRUPTED])
def test_a_normal_end_of_rank_0_stands_whatever_the_others_do(reason: Reason) -> None:
    own = Outcome(reason=reason)
    for others in itertools.permutations([ending(0, own), ending(1, KILLED), ending(2, CLOSED, True)]):
        assert decide(others, None) == own


def test_the_first_cause_that_is_not_collateral_gives_the_reason() -> None:
    outcome = decide([ending(0, CLOSED, True), ending(2, KILLED), ending(1, RAISED)], None)
    assert outcome == replace(KILLED, message="rank 2 was killed by SIGKILL")
    assert outcome.log_tail == "last words"


def test_an_exception_keeps_its_own_text() -> None:
    assert decide([ending(1, RAISED), ending(0, CLOSED, True)], None) == RAISED


def test_of_collateral_ends_alone_the_first_counts() -> None:
    later = replace(CLOSED, message="RuntimeError: broken pipe")
    assert decide([ending(1, CLOSED, True), ending(0, later, True)], None) == CLOSED


def test_a_lost_peer_after_an_early_return_is_explained_by_it() -> None:
    outcome = decide([ending(1, COMPLETE), ending(0, CLOSED, True)], None)
    assert outcome.reason is Reason.EXCEPTION
    assert outcome.message == f"rank 1 returned while the others went on: {CLOSED.message}"


def test_what_we_asked_for_counts_over_how_the_ranks_died_of_it() -> None:
    outcome = decide([ending(1, KILLED), ending(0, replace(KILLED, log_tail="of rank 0"))], ASKED)
    assert outcome == replace(ASKED, log_tail="of rank 0")


def test_a_trial_that_completed_before_it_was_killed_is_complete() -> None:
    assert decide([ending(0, COMPLETE), ending(1, KILLED)], ASKED) == COMPLETE


def test_a_trial_that_obeyed_a_stop_carries_the_reason_of_the_stop() -> None:
    own = Outcome(reason=Reason.INTERRUPTED, message="the trial was asked to stop")
    asked = Outcome(reason=Reason.STOPPED, message="asked to stop, and ended after 10 s of grace")
    assert decide([ending(0, own)], asked) == replace(own, reason=Reason.STOPPED)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (3, "exited with code 3"),
        (0, "exited with code 0"),
        (-11, "was killed by SIGSEGV"),
        (-99, "was killed by signal 99"),
    ],
)
def test_an_exit_without_a_last_word_is_a_lost_rank(code: int, message: str) -> None:
    assert exit_outcome(code, "tail") == Outcome(reason=Reason.RANK_LOST, message=message, log_tail="tail")


def test_bundles_are_counted_node_by_node() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}]
    assert fitting(nodes, {"CPU": 2}) == 3
    assert fitting(nodes, {"CPU": 2, "GPU": 1}) == 1
    assert fitting(nodes, {"CPU": 5}) == 0
    assert fitting([{"CPU": 1.0}], {"CPU": 0.1}) == 10


@pytest.mark.parametrize(
    ("bundle", "ranks", "parts"),
    [
        ({"CPU": 1, "GPU": 2}, 2, ["needs 4 GPUs (2 ranks, 2 each)", "the cluster has 1"]),
        ({"CPU": 5}, 1, ["one rank needs 5 CPUs", "largest node of the cluster has 4"]),
        ({"CPU": 3}, 2, []),
        ({"fast_disk": 1}, 1, ["needs 1 fast_disk", "has 0"]),
        ({"CPU": 4, "GPU": 0.5}, 2, ["2 times (4 CPUs, 0.5 GPUs)", "hold 1 of them"]),
    ],
)
def test_a_shortage_is_one_line_with_both_numbers(
    bundle: dict[str, float], ranks: int, parts: list[str]
) -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0}]
    fits = fitting(nodes, bundle) >= ranks
    assert fits == (not parts)
    text = shortage(nodes, bundle, ranks)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_a_cluster_is_described_in_a_few_words() -> None:
    assert described([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}]) == "2 nodes, 16 CPUs, 1 GPU"
    assert described([{"CPU": 2.0}]) == "1 node, 2 CPUs"
