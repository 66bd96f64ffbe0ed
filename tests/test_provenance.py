"""Where a result comes from is recorded without secrets, and without heavy imports."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tuner import objective, provenance

SOURCE = "def objective(trial):\n    return 1.0\n"


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A committed objective in a repository of its own."""
    file = tmp_path / "traced_objective.py"
    file.write_text(SOURCE)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return file


def test_a_clean_repository_is_its_commit(file: Path) -> None:
    ref = objective.refer(f"{file}:objective")
    found = provenance.collect(ref, ["train.py", "--trials", "3"], 17)
    assert found["git"] == {"commit": git(file.parent, "rev-parse", "HEAD"), "uncommitted_digest": ""}
    assert found["objective"] == f"{file}:objective"
    assert found["objective_digest"] == hashlib.sha256(SOURCE.encode()).hexdigest()
    assert found["arguments"] == ["train.py", "--trials", "3"]
    assert found["study_seed"] == 17
    assert found["python"] == platform.python_version()
    packages = found["packages"]
    assert isinstance(packages, dict)
    assert {"numpy", "optuna", "ray", "torch", "tuner"} <= packages.keys()
    assert json.loads(json.dumps(found)) == found


def test_each_uncommitted_change_has_a_digest_of_its_own(file: Path) -> None:
    digests = set()
    for line in ("", "# one\n", "# two\n"):
        file.write_text(SOURCE + line)
        found = provenance.collect(objective.refer(f"{file}:objective"), [], 0)["git"]
        assert isinstance(found, dict)
        digests.add(found["uncommitted_digest"])
    assert len(digests) == 3


def test_a_folder_without_git_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "untraced_objective.py"
    file.write_text(SOURCE)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    ref = objective.refer(str(file))
    assert provenance.collect(ref, [], 0)["git"] is None
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    assert provenance.collect(ref, [], 0)["git"] is None


def test_arguments_are_masked(file: Path) -> None:
    found = provenance.collect(objective.refer(str(file)), ["tuner", "postgresql://a:secret@h/d"], 0)
    assert "secret" not in json.dumps(found)


def test_nothing_heavy_is_imported_to_collect_it() -> None:
    code = (
        "import sys, json; from tuner import provenance; from tuner.assignment import ObjectiveRef;"
        "found = provenance.collect(ObjectiveRef(module='m', name='n'), [], 0);"
        "assert found['packages']['torch']; assert found['cuda'] is None;"
        "print([name for name in ('ray', 'torch', 'streamlit') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
