"""The programs for Spark and Keras run as their docstrings say, in an environment of their own."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

import tuner
from tests.test_command_ray import HOME, documented
from tuner.cli import main

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and ``python`` that of the programs: of ``make install-programs``."""
    programs = Path(os.environ.get("TUNER_TEST_PROGRAMS", HOME / ".venv-programs")) / "bin"
    if not programs.exists():
        pytest.fail(f"there is no {programs}: make install-programs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "objectives").symlink_to(HOME / "objectives")
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java on this machine")
def test_the_spark_job() -> None:
    assert main([*documented("forest_spark"), "--trials", "2"]) == 0
    trials = tuner.load_study("spark").trials
    assert [set(trial.params) for trial in trials] == [{"trees", "depth"}] * 2
    assert all(0.5 < trial.value <= 1 for trial in trials)


def test_the_keras_script_under_its_own_workers() -> None:
    assert main([*documented("digits_keras"), "--trials", "2"]) == 0
    for trial in tuner.load_study("keras").trials:
        assert list(trial.intermediate_values) == list(range(5))
        assert 0 < trial.value <= 1
