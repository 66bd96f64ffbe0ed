"""Each public name has an example in its docstring, and every example is true."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

import storage
import tuner

for needed in (
    "pytorch_lightning",
    "ray.tune",
):  # found, not imported: all processes of a run collect this
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries that examples call

ROOT = Path(__file__).resolve().parent.parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PROGRAMS = ("objectives.demo", "objectives.plot")
PUBLIC = (
    "tuner",
    "tuner.torch",
    "tuner.lightning",
    "tuner.compat",
    "storage",
    "objectives",
    *(f"objectives.{file.stem}" for file in sorted((ROOT / "objectives").glob("[a-z]*.py"))),
)


def given_by(module: str) -> list[str]:
    """What its ``__all__`` says; read, not imported, since several bring what takes seconds."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []


NAMES = [
    f"{module}.{name}"
    for module in PUBLIC
    if module not in PROGRAMS
    for name in given_by(module)
    if not name.isupper()  # constants have no docstring
]
MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("dashboard", "objectives", "storage", "tuner")
    for file in sorted((ROOT / package).rglob("*.py"))
    if ">>>" in file.read_text()
]


def examples(module: Any) -> Iterator[doctest.DocTest]:
    """Those of a module's own docstrings; they may name what it has, and the packages."""
    names = {**vars(module), "optuna": optuna, "storage": storage, "torch": torch, "tuner": tuner}
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, globs=names):
        if test.examples:
            yield test


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples, as a reader who tries them has it: one database."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    try:
        for test in examples(importlib.import_module(name)):
            said: list[str] = []
            with capsys.disabled():
                doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
            assert not said, "".join(said)
    finally:
        torch.set_num_threads(threads)  # a trial sets it, as for a process of its own


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_an_example(name: str) -> None:
    module, _, last = name.rpartition(".")
    given = inspect.getdoc(getattr(importlib.import_module(module), last)) or ""
    ran = [one for one in doctest.DocTestParser().get_examples(given) if doctest.SKIP not in one.options]
    assert ran, f"{name} has no example that is run; write one with >>> in its docstring"
