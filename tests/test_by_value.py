"""Objectives that are sent by value: what their digest notices, and what they must not carry."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import optuna
import pytest

from tuner import by_value
from tuner.errors import BadObjective

CELLS = """
import functools, math
SCALE, UNUSED, CHOICES = 2.0, 1, {"a": [1, 2]}

def shift(x):
    return x - SCALE if x in {"one", "two", "three"} else x

class Base:
    power = 2
    def error(self, x):
        return math.fabs(shift(x)) ** self.power

class Model(Base):
    pass

def make(width):
    def objective(trial, offset=0.5):
        inner = lambda: Model().error(trial) + width + offset + len(CHOICES)
        return inner()
    return objective

objective = make(3)
partial = functools.partial(objective, offset=1)
method = Model().error
"""


def made(text: str = CELLS) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(text, names)
    return names


@pytest.mark.parametrize("name", ["objective", "partial", "method", "Model"])
def test_the_same_cells_have_the_same_digest_in_another_process(name: str) -> None:
    code = f"from tuner import by_value\nnames = {{'__name__': '__main__'}}\nexec({CELLS!r}, names)\n"
    code += f"print(by_value.digest(names[{name!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == by_value.digest(made()[name]) == by_value.digest(made()[name])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("SCALE, UNUSED, CHOICES = 2.0", "SCALE, UNUSED, CHOICES = 2.5"),
        ("[1, 2]", "[1, 3]"),
        ("x - SCALE", "x + SCALE"),
        ("power = 2", "power = 3"),
        ("math.fabs", "math.exp"),
        ("make(3)", "make(4)"),
        ("offset=0.5", "offset=0.6"),
        ('"three"', '"four"'),
    ],
)
def test_a_change_that_the_objective_reaches_changes_its_digest(before: str, after: str) -> None:
    assert before in CELLS
    changed = made(CELLS.replace(before, after))["objective"]
    assert by_value.digest(changed) != by_value.digest(made()["objective"])


def test_a_change_that_it_does_not_reach_leaves_it() -> None:
    other = made(CELLS.replace("2.0, 1, {", "2.0, 7, {") + "\ndef more():\n    return 1\n")
    assert by_value.digest(other["objective"]) == by_value.digest(made()["objective"])


def test_cells_that_reach_themselves_have_a_digest() -> None:
    text = "def objective(n):\n    return objective(n - 1) if n else names\n"
    text += "names = {}\nnames['self'] = [names]\n"
    assert by_value.digest(made(text)["objective"]) == by_value.digest(made(text)["objective"])


def uses(value: object) -> Callable[[Any], object]:
    return lambda trial: value


def test_a_study_and_its_password_stay_here(sqlite_url: str) -> None:
    study = optuna.create_study(study_name="mine", storage=sqlite_url)
    for value, said in ((study, "the study 'mine'"), ([study._storage], "a storage")):
        with pytest.raises(BadObjective, match=f"uses {said} .* inside it use trial.study"):
            by_value.dumps(uses(value))


def test_an_objective_that_carries_much_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        by_value.dumps(uses(bytes(2**20)))
        assert caplog.text == ""
        by_value.dumps(uses(bytes(20 * 2**20)))
    assert "carries 20 MiB of values of this process to each trial" in caplog.text
    assert "tuner.shared" in caplog.text
