"""``--log-format json``: every line of standard error is an object that says what it is of."""

from __future__ import annotations

import datetime as dt
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuner import logs
from tuner.cli import main

OBJECTIVE = """
import warnings
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    trial.report(x, 0)
    if trial.number == 1:
        raise ValueError("no luck at postgresql://ann:secret@host/db")
    return x
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o.py").write_text(OBJECTIVE)
    return tmp_path


def command(*more: str) -> list[str]:
    return ["run", "o.py", "--study", "s", "--trials", "3", "--executor", "inline", *more]


def lines(err: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in err.splitlines()]


def test_each_line_has_its_study_trial_attempt_and_event(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("--log-format", "json")) == 0
    out, err = capsys.readouterr()
    read = lines(err)
    assert {one["study"] for one in read} == {"s"}
    for one in read:
        assert {"time", "level", "logger", "event", "message"} <= one.keys()
        assert dt.datetime.fromisoformat(one["time"]).utcoffset() == dt.timedelta(0)
    of_trials = [(one["event"], one["trial"], one["attempt"]) for one in read if "trial" in one]
    assert [one for one in of_trials if one[0] == "started"] == [("started", n, 1) for n in range(3)]
    assert [one for one in of_trials if one[0] == "finished"] == [("finished", n, 1) for n in range(3)]
    (failed,) = [one for one in read if one["event"] == "trial_failed"]
    assert (failed["level"], failed["trial"]) == ("warning", 1)
    assert "secret" not in err
    assert out.startswith("s: 2 complete, 1 failed")  # what came out is for people, and no log


def test_an_error_is_a_line_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "o.py").write_text("def objective(trial): raise ValueError('always')\n")
    assert main(command("--log-format", "json", "--stop-after", "2")) == 1
    last = lines(capsys.readouterr().err)[-1]
    assert (last["event"], last["level"], last["detail"]) == ("error", "error", {"exit_code": 1})
    assert "always" in last["message"]


@pytest.mark.usefixtures("folder")
def test_text_stays_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    program = [sys.executable, "-m", "tuner", *command()]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("trial 1 failed: exception: ValueError: no luck")
    assert main(command("--log-format", "xml")) == 2
    assert capsys.readouterr().err == "error: --log-format 'xml': choose text or json\n"


def test_logging_is_as_before_after_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (list(logging.getLogger().handlers), logging.getLogger("tuner").level)
    assert main(command("--log-format", "json")) == 0
    assert (list(logging.getLogger().handlers), logging.getLogger("tuner").level) == before
    capsys.readouterr()


def test_a_traceback_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.as_json("s"):
        try:
            raise KeyError("two\nlines")
        except KeyError:
            logging.getLogger("tuner.x").exception("it\nfailed")
    (line,) = lines(capsys.readouterr().err)
    assert line["message"] == "it\nfailed"
    assert "KeyError" in line["traceback"]
