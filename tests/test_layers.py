"""Who may import what: objectives -> tuner -> storage <- dashboard, and no circles.

Heavy libraries enter by few doors.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tuner

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dashboard", "objectives", "storage", "tuner")
MAY_IMPORT = {
    "dashboard": {"dashboard", "storage"},
    "objectives": {"objectives", "tuner"},
    "storage": {"storage"},
    "tuner": {"tuner", "storage"},
}
RANK = (
    "tuner.agreement",
    "tuner.checkpoint",
    "tuner.checkpoint_state",
    "tuner.device",
    "tuner.seeds",
    "tuner.shared_layout",
    "tuner.switches",
    "tuner.trial",
)
DOORS = {
    # compat: Ray Tune's domains and session, for those who have code for it; it runs nothing on Ray
    "ray": ("tuner.dispatch", "tuner.compat"),
    "streamlit": ("dashboard",),
    "altair": ("dashboard",),
    "plotly": ("dashboard",),
    "sqlalchemy": ("storage",),
    "alembic": ("storage",),
    # the rank's set-up, its checkpoints, helpers, and the process that is forked with torch imported
    "torch": (*RANK, "tuner.worker", "tuner.dispatch.zygote", "tuner.torch", "tuner.lightning", "objectives"),
    "pytorch_lightning": ("tuner.lightning",),
    "lightning": ("tuner.lightning",),
    "rich": ("tuner.cli", "tuner.notebook", "tuner.progress", "tuner.redraw", "objectives"),
    "IPython": ("tuner.notebook",),
    "mpi4py": ("objectives.programs",),
    "pyspark": ("objectives.programs",),
    "tensorflow": ("objectives.programs",),
    "click": ("tuner.cli",),
    "mlflow": ("tuner.exporters.mlflow",),
    "prometheus_client": ("tuner.metrics",),
    "tensorboard": ("objectives.external.metrics", "tuner.exporters.tensorboard"),
    "wandb": ("tuner.exporters.wandb",),
}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name: the module itself, or what ``from module import name`` may mean."""

    by: str
    line: int
    module: str
    name: str = ""
    for_types_only: bool = False
    inside_a_function: bool = False

    def __str__(self) -> str:
        return f"{self.by}:{self.line} imports {self.module} {self.name}".rstrip()


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(file): file
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
    if "__pycache__" not in file.parts
}


@functools.cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(), name)


def imports_of(name: str) -> Iterator[Import]:
    def visit(node: ast.AST, types: bool, inside: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(by=name, line=node.lineno, module=alias.name, for_types_only=types,
                             inside_a_function=inside)  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                yield Import(by=name, line=node.lineno, module=module, name=alias.name, for_types_only=types,
                             inside_a_function=inside)  # fmt: skip
        else:
            types = types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
            inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, types, inside)

    yield from visit(tree_of(name), False, False)


@functools.cache
def torch_names() -> set[str]:
    """What ``tuner.torch`` gives; read, not imported, since it brings torch."""
    return {one.name for one in imports_of("tuner.torch")}


@functools.cache
def all_imports() -> list[Import]:
    """Read by the first test: each process of a parallel run collects this file, and one runs it."""
    return [one for name in FILES for one in imports_of(name)]


def target(one: Import) -> str:
    """The module of ours that an import runs."""
    deeper = f"{one.module}.{one.name}"
    return deeper if deeper in FILES else one.module


def test_the_rules_look_at_every_package() -> None:
    assert {name.partition(".")[0] for name in FILES} == set(PACKAGES)
    assert {target(one) for one in all_imports()} >= {"storage.tables", "tuner.outcome"}


def test_no_package_imports_against_the_layers() -> None:
    wrong = [
        str(one)
        for one in all_imports()
        if (top := one.module.partition(".")[0]) in PACKAGES
        and top not in MAY_IMPORT[one.by.partition(".")[0]]
    ]
    assert wrong == []


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_enters_by_its_doors_only(library: str) -> None:
    wrong = [
        str(one)
        for one in all_imports()
        if one.module.partition(".")[0] == library
        and not one.for_types_only
        and not any(one.by == door or one.by.startswith(f"{door}.") for door in DOORS[library])
    ]
    assert wrong == []


def test_objectives_use_the_public_names_only() -> None:
    wrong = [
        str(one)
        for one in all_imports()
        if one.by.startswith("objectives")
        and one.module.partition(".")[0] == "tuner"
        and not (one.module == "tuner" and (not one.name or one.name in tuner.__all__))
        and not (one.module == "tuner.torch" and one.name in torch_names())
    ]
    assert wrong == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    """Imports inside functions count too: they hide a circle, they do not open it."""
    edges: dict[str, set[str]] = {name: set() for name in FILES}
    for one in all_imports():
        if not one.for_types_only and target(one) in FILES and target(one) != one.by:
            edges[one.by].add(target(one))
    assert find_circle(edges) == []


def find_circle(edges: dict[str, set[str]]) -> list[str]:
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for following in sorted(edges[name]):
            if circle := walk(following, [*path, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(edges) if (circle := walk(name, []))), [])


def test_the_search_for_circles_finds_one() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}
    assert find_circle(edges) == ["b", "c", "b"]
    assert find_circle({**edges, "c": {"d"}}) == []


def test_private_names_stay_in_their_module() -> None:
    wrong = [
        str(one)
        for one in all_imports()
        if one.module.partition(".")[0] in PACKAGES and one.name.startswith("_") and one.name != "__version__"
    ]
    assert wrong == []


@pytest.mark.parametrize("name", FILES)
def test_a_module_says_what_it_is_and_what_it_gives(name: str) -> None:
    tree = tree_of(name)
    if not tree.body:
        return
    assert ast.get_docstring(tree), f"{name} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            given = ast.literal_eval(node.value)
            assert given == sorted(set(given), key=_order)
            defined = set(_defined(tree))
            if "__getattr__" not in defined:
                assert set(given) <= defined


def _order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as ruff has it."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def test_every_public_name_can_be_had_and_says_what_it_is() -> None:
    assert tuner.__all__ == sorted(tuner.__all__)
    for name in tuner.__all__:
        assert getattr(tuner, name).__doc__, name
    assert set(tuner.__all__) <= set(dir(tuner))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        tuner.nothing  # noqa: B018


def test_importing_tuner_imports_nothing_heavy() -> None:
    heavy = ("alembic", "matplotlib", "numpy", "optuna", "pandas", "ray", "sqlalchemy", "streamlit", "torch")
    code = f"import sys, tuner; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"


def test_no_module_takes_the_place_of_a_public_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(tuner.__path__)}
    assert not modules & {*tuner.__all__} - {"exporters"}


@pytest.mark.parametrize("entry", ["tuner.cli", "tuner.optimization"])
def test_the_driver_imports_ray_torch_and_streamlit_only_when_it_needs_them(entry: str) -> None:
    code = f"import sys, {entry}; print([n for n in ('ray', 'streamlit', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"
