"""A folder with studies, and a way to run commands there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import tuner
from tests.cli_data import OBJECTIVES, Run
from tuner.cli import main


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with objectives, and a database with a finished study of each kind."""
    folder = tmp_path_factory.mktemp("cli")
    file = folder / "cli_objectives.py"
    file.write_text(OBJECTIVES)
    (folder / "broken_objective.py").write_text("import math\n\nx = 0\ny = 1 / x\n")
    (folder / "broken_syntax.py").write_text("x = 1\ndef objective(trial:\n    pass\n")
    (folder / "broken_import.py").write_text("import not_installed\n")
    os.mkfifo(folder / "pipe", 0o600)
    url = f"sqlite:///{folder}/tuner.db"
    for name, budget in (("objective", 3), ("two", 3), ("constrained", 4), ("fails", 2)):
        ways = ["minimize", "minimize"] if name == "two" else ["minimize"]
        study = tuner.create_study(name, storage=url, directions=ways, sampler="random", seed=1)
        if name == "constrained":
            for x in (1, 5, 4, 8):
                study.enqueue_trial({"x": x})
        tuner.optimize(study, f"{file}:{name}", n_trials=budget, executor="inline", progress=False)
    return folder


@pytest.fixture
def run(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in the folder, on its database: (exit code, stdout, stderr)."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("TUNER_STORAGE", f"sqlite:///{made}/tuner.db")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call
