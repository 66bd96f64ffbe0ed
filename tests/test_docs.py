"""The pages of docs/ tell the truth: programs run, commands are there, links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tuner
from tuner.cli.app import _COMMANDS

HOME = Path(__file__).resolve().parent.parent
PAGES = sorted((HOME / "docs").rglob("*.md"))


def diffs(page: str) -> list[tuple[str, str]]:
    """Each diff of a page as what was before and what is after."""
    text = (HOME / "docs" / page).read_text()
    bodies = re.findall(r"```diff\n(.*?)```", text, flags=re.DOTALL)
    sides = [
        ["\n".join(line[1:] for line in body.splitlines() if line[:1] != other) for other in "+-"]
        for body in bodies
    ]
    return [(before, after) for before, after in sides]


def tune(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tuner", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(tuner.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("page", ["from-optuna.md", "from-ray-tune.md"])
def test_both_sides_of_a_diff_are_programs(page: str) -> None:
    found = [
        side for sides in diffs(page) for side in sides if not side.lstrip().startswith(("$", "for i in"))
    ]
    assert len(found) >= 2
    for side in found:
        ast.parse(side)


@pytest.mark.parametrize(("page", "params"), [("from-optuna.md", "x=3"), ("from-ray-tune.md", "lr=0.5")])
def test_the_program_of_a_page_runs(page: str, params: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(diffs(page)[0][1])
    out = tune(["run", "program.py", "--params", params], tmp_path)
    assert re.search(r"^value ", out, flags=re.MULTILINE), out


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, HOME / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_commands_of_the_pages_are_there() -> None:
    named = {
        name for page in PAGES for name in re.findall(r"^[+$] ?tuner (\w+)", page.read_text(), re.MULTILINE)
    }
    assert named
    assert named <= set(_COMMANDS)


PINNED = {
    "PyTorch": "torch",
    "XGBoost": "xgboost-cpu",
    "Lightning": "pytorch-lightning",
    "MLflow": "mlflow-skinny",
}
PINNED |= {"Weights & Biases": "wandb", "Spark": "pyspark", "torchrun": "torch", "Ray jobs": "ray"}


def test_the_versions_that_other_systems_were_run_with_are_the_pinned_ones() -> None:
    pins = (HOME / "constraints.txt").read_text() + (HOME / "Makefile").read_text()
    versions = dict(re.findall(r"([\w-]+)==([\w.]+)", pins))
    rows = re.findall(
        r"^\| ([^|]+?)\*? \| ([\d.]+)[^|]*\|", (HOME / "docs/integrations.md").read_text(), re.MULTILINE
    )
    checked = set()
    for system, version in rows:
        name = PINNED.get(system, system.split(" and ")[0].lower())
        if name in versions:
            assert version == versions[name], system
            checked.add(system)
    assert {system for system, _ in rows} - checked == {"Prometheus", "KubeRay"}
