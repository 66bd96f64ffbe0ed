"""Python's collector looks less often while a driver runs, and as before afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tuner.garbage import SELDOM, seldom_collected


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("before", "alone", "meanwhile"),
    [
        ((700, 10, 10), True, SELDOM),
        ((700, 10, 10), False, 700),
        ((0, 10, 10), True, 0),  # the user has switched it off
        ((50_000, 10, 10), True, 50_000),
    ],
)
def test_it_looks_less_often_where_no_objective_runs(
    before: tuple[int, int, int], alone: bool, meanwhile: int
) -> None:
    gc.set_threshold(*before)
    with seldom_collected(alone=alone):
        assert gc.get_threshold()[0] == meanwhile
    assert gc.get_threshold() == before


def test_what_a_callback_sets_meanwhile_stays() -> None:
    with seldom_collected(alone=True):
        gc.set_threshold(5, 5, 5)
    assert gc.get_threshold() == (5, 5, 5)
