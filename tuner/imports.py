"""What the processes of an objective import ahead, read from its file without running it."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import itertools
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from tuner.shadow import OWN_PACKAGES

__all__ = ["TORCH", "imports", "is_installed_file", "may_use_torch"]

TORCH = "torch"

_PLAYS = {
    "antigravity",
    "idlelib",
    "test",
    "this",
    "tkinter",
    "turtle",
    "turtledemo",
}  # on import, some of them
_LEFT_OUT = {"__future__", "ray", "streamlit", *OWN_PACKAGES, *_PLAYS}
_WITHOUT_TORCH = {
    *("catboost", "joblib", "lightgbm", "matplotlib", "numpy", "optuna", "pandas", "PIL", "polars", "psutil"),
    *("pyarrow", "ray", "requests", "scipy", "sklearn", "statsmodels", "tensorflow", "tqdm", "xgboost"),
    *("yaml", *sys.stdlib_module_names),
} - {"importlib"}  # whose import_module may bring anything
_OURS = ("dashboard", "storage", "tuner")
_WITH_TORCH = ("tuner.torch.", "tuner.lightning.")
_MEMBERS_WITH_TORCH = {"device", "load_checkpoint", "save_checkpoint"}  # of a trial
_FILES = 200  # files of the user's that are read


def imports(file: str) -> tuple[str, ...]:
    """Installed modules and those of Python for a zygote to import once, before it forks the objective's
    processes: those that the file imports at its top, and torch if :func:`may_use_torch`.

    A fork of a process that holds torch takes three times as long, and imports of it seconds. What the file
    imports after it has changed its environment may depend on that, as Keras does: that is left to attempts.
    """
    tree = _parsed(file)
    if tree is None:
        return ()
    before = itertools.takewhile(lambda node: not _sets_environment(node), tree.body)
    folder = os.path.dirname(file)  # a file of the user's stands before others
    found = [
        name
        for node in before
        for name in _named(node, "")
        if _is_installed(name) and _own_file(name, folder) is None
    ]
    names = dict.fromkeys(found)
    if not any(_top(name) == TORCH for name in names) and may_use_torch(file):
        names[TORCH] = None
    return tuple(names)


def may_use_torch(file: str) -> bool:
    """Whether anything that the file imports, anywhere in it or in other files of the user's, may be torch,
    or it asks a trial for what takes torch: its device, its checkpoints.

    Installed modules count as if they did, apart from some that are known not to.
    """
    to_read, seen = [file], set[str]()
    while to_read:
        path = to_read.pop()
        if path in seen:
            continue
        seen.add(path)
        tree = _parsed(path)
        if tree is None or len(seen) > _FILES:
            return True
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == "__import__":
                return True
            if isinstance(node, ast.Attribute) and node.attr in _MEMBERS_WITH_TORCH:
                return True
            for name in _named(node, path):
                if f"{name}.".startswith(_WITH_TORCH):
                    return True
                if _top(name) in _OURS:
                    continue
                own = _own_file(name, os.path.dirname(file))
                if not own and _top(name) in _WITHOUT_TORCH:  # a file of the user's stands before others
                    continue
                if own is None:
                    return True
                to_read += own
    return False


def is_installed_file(file: str) -> bool:
    """Whether a module's file is of the standard library or of an installed package."""
    standard = os.path.dirname(os.__file__) + os.sep
    return file == "built in" or "site-packages" in file or file.startswith(standard)


def _parsed(file: str) -> ast.Module | None:
    with contextlib.suppress(OSError, SyntaxError, ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the file is imported
        return ast.parse(Path(file).read_bytes())
    return None


def _named(node: ast.AST, file: str) -> Iterator[str]:
    """The modules that a statement imports; with a ``file``, also those that are relative to it."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
        yield node.module
        if file:  # from package import module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level and file:
        folders = Path(file).parents
        folder = folders[min(node.level, len(folders)) - 1]
        package = "/".join((str(folder), *(node.module.split(".") if node.module else ())))
        yield from (package, *(f"{package}/{alias.name}" for alias in node.names))


def _sets_environment(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
        return False
    named = (getattr(one, "attr", getattr(one, "id", None)) for one in ast.walk(node))
    return any(name in ("environ", "putenv", "load_dotenv") for name in named)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _own_file(name: str, folder: str) -> list[str] | None:
    """The files of a module that is the user's or ours, itself and what is above it; None: it is installed,
    or not there.
    """
    if name.startswith("/"):
        return [file for file in (f"{name}.py", f"{name}/__init__.py") if os.path.isfile(file)]
    parts = name.split(".")
    for base in (folder, *sys.path):
        if not (os.path.isfile(f"{base}/{parts[0]}.py") or os.path.isdir(f"{base}/{parts[0]}")):
            continue
        if is_installed_file(f"{base}/"):
            return None
        found = []
        for end in range(1, len(parts) + 1):
            path = "/".join((base, *parts[:end]))
            found += [file for file in (f"{path}.py", f"{path}/__init__.py") if os.path.isfile(file)]
        return found
    return None


def _is_installed(name: str) -> bool:
    if _top(name) in _LEFT_OUT:
        return False
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(_top(name))
        return spec is not None and is_installed_file(spec.origin or "")
    return False
