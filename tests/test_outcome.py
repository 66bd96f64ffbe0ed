"""What an objective's return value means."""

from __future__ import annotations

import decimal
import fractions
import math
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuner.outcome import Outcome, Reason, classify_return

INF = math.inf


@pytest.mark.parametrize(
    "value",
    [
        2, 2.0, numpy.float32(2), numpy.int64(2), numpy.array(2.0), torch.tensor(2.0), torch.tensor([2]),
        decimal.Decimal(2), fractions.Fraction(2), [2.0], (2,),
    ],
)  # fmt: skip
def test_whatever_is_a_number_is_complete(value: Any) -> None:
    assert classify_return(value, ["minimize"]) == Outcome(reason=Reason.COMPLETE, values=(2.0,))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None; it must return a number"),
        ("0.5", "'0.5'"),
        (b"a", "b'a'"),
        (bytearray(b"1"), "bytearray(b'1')"),
        (memoryview(b"1"), "<memory"),
        (numpy.zeros((5, 5)), "array([[0., 0., 0., 0., 0.], [0."),
        ([], "[]; it must return a number"),
        ([1, 2], "[1, 2]; it must return a number"),
        (["0.5"], "'0.5'"),
        (1j, "1j"),
        (numpy.zeros(3), "array"),
        (torch.zeros(3), "tensor"),
        ({}, "{}"),
        (10**400, "1000"),
    ],
)
def test_what_is_no_number_is_refused_and_shown(value: Any, shown: str) -> None:
    outcome = classify_return(value, ["minimize"])
    assert outcome.reason is Reason.BAD_VALUE
    assert outcome.values == ()
    assert f"the objective returned {shown}" in outcome.message
    assert len(outcome.message) < 200
    assert "\n" not in outcome.message


@pytest.mark.parametrize("count", [0, 1, 3])
def test_several_objectives_need_as_many_values(count: int) -> None:
    outcome = classify_return([0.0] * count, ["minimize", "maximize"])
    assert outcome.reason is Reason.BAD_VALUE
    assert "must return 2 numbers" in outcome.message


def test_several_objectives_keep_their_order() -> None:
    assert classify_return((1, 2.5), ["minimize", "maximize"]).values == (1.0, 2.5)


@pytest.mark.parametrize("value", [math.nan, [math.nan], numpy.float32("nan"), torch.tensor(math.nan)])
def test_nan_has_a_reason_of_its_own(value: Any) -> None:
    assert classify_return(value, ["minimize"]).reason is Reason.NAN
    assert classify_return([0, math.nan], ["minimize", "minimize"]).reason is Reason.NAN


@pytest.mark.parametrize(
    ("value", "direction", "reason"),
    [
        (-INF, "minimize", Reason.INFINITE),
        (INF, "minimize", Reason.COMPLETE),
        (INF, "maximize", Reason.INFINITE),
        (-INF, "maximize", Reason.COMPLETE),
    ],
)
def test_an_infinity_may_lose_but_not_win(value: float, direction: str, reason: Reason) -> None:
    assert classify_return(value, [direction]).reason is reason
    assert classify_return([0.0, value], ["minimize", direction]).reason is reason


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["minimize", "maximize"]))
def test_every_finite_number_is_kept_as_it_is(value: float, direction: str) -> None:
    assert classify_return(value, [direction]).values == (value,)
