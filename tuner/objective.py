"""Objectives by reference: how one is named, found, checked, sent and imported.

An objective travels as (file, module name, name, digest) and is imported on the worker under
its module name, so that DataLoader's spawn, pickling of its classes and its relative helpers
work as in a script. It travels by value (cloudpickle) only where there is no file to import:
notebooks, lambdas and closures, and a script that would run its whole study again when it is
imported, because it has no ``if __name__ == "__main__"`` guard. One that a recipe makes travels, and is
stored, as the recipe.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
from optuna.distributions import BaseDistribution

from tuner import by_value, compiled
from tuner.assignment import ObjectiveRef
from tuner.errors import BadInput, BadObjective
from tuner.imports import TORCH, imports, is_installed_file
from tuner.recipe import Recipe
from tuner.shadow import check_folder

__all__ = [
    "describe",
    "direction_of",
    "from_json",
    "load",
    "member",
    "refer",
    "refuse_while_importing",
    "space_of",
    "to_json",
]


_SENT = "/runtime_resources/py_modules_files/"  # where Ray puts modules on a node

_importing: list[str] = []  # files or modules that are being imported for their objective


def refuse_while_importing() -> None:
    """Refuse to start a study from a script that is only imported for its objective, or from a rank.

    Raises:
        BadObjective: names the script.
    """
    if _importing:
        raise BadObjective(
            f"{_importing[-1]} starts a study when it is imported; put that below "
            "'if __name__ == \"__main__\":'"
        )
    if "TUNER_TRIAL" in os.environ:
        raise BadObjective("an objective cannot start a study of its own: it runs on a worker")


def refer(objective: Callable[..., Any] | Recipe | str) -> ObjectiveRef:
    """The reference of an objective: a callable, a recipe, ``"FILE.py:NAME"`` or ``"package.module:NAME"``.

    Raises:
        BadObjective: it is not there, cannot be imported, is not callable, or cannot be sent.
    """
    if isinstance(objective, str):
        return _from_text(objective)
    if isinstance(objective, Recipe):
        return _by_recipe(objective.factory, objective.arguments)
    if not callable(objective):
        raise BadObjective(f"the objective {objective!r} is not callable; give a function of the trial")
    recipe = getattr(objective, "recipe", None)
    if isinstance(recipe, Recipe):
        return _by_recipe(recipe.factory, recipe.arguments)
    return _by_reference(objective) or _by_value(objective)


def space_of(objective: Callable[..., Any] | Recipe | str, ref: ObjectiveRef) -> Mapping[str, Any] | None:
    """The distributions that an objective brings with it as its ``space``, or None.

    Args:
        ref: its reference.
    """
    space = getattr(objective if callable(objective) else load(ref), "space", None)
    if isinstance(space, Mapping) and all(isinstance(one, BaseDistribution) for one in space.values()):
        return dict(space) or None
    return None


def direction_of(objective: Callable[..., Any] | Recipe | str, ref: ObjectiveRef) -> str | None:
    """The ``direction`` that an objective brings with it, or None."""
    direction = getattr(objective if callable(objective) else load(ref), "direction", None)
    return direction if direction in ("minimize", "maximize") else None


def load(ref: ObjectiveRef) -> Callable[..., Any]:
    """Import an objective, in the process that is to call it.

    Raises:
        BadObjective: with the file, the line and the cause in one line.
    """
    sent = [place for place, folder in enumerate(sys.path, 1) if _SENT in str(folder)]
    for folder in reversed(ref.sys_path):
        if folder not in sys.path:
            sys.path.insert(max(sent, default=0), folder)  # what was sent counts, as on other nodes
    if ref.pickled:
        try:
            return cloudpickle.loads(ref.pickled)  # type: ignore[no-any-return]
        except Exception as error:
            raise BadObjective(f"the objective cannot be unpacked here: {_one_line(error)}") from error
    module = _import(ref.module, ref.file)
    found = _attribute(module, ref.name, ref.file or ref.module)
    if ref.arguments:
        found = _made(found, ref)
    if not callable(found):
        raise BadObjective(
            f"{ref.name!r} in {ref.file or ref.module} is {type(found).__name__}, not a function"
        )
    return found  # type: ignore[no-any-return]


def ahead(ref: ObjectiveRef) -> None:
    """Look at an objective's file and compile it, for processes that are forked from this one to load it;
    nothing of it is run.
    """
    if ref.file:
        with contextlib.suppress(Exception):  # who loads it hears what is wrong
            _check_once(os.path.dirname(ref.file))
            compiled.ahead(ref.module, ref.file)


def member(text: str) -> Any:
    """What ``"FILE.py:NAME"`` names in this process, such as a search space.

    Raises:
        BadObjective: the file or the name is not there, or the file cannot be imported.
    """
    target, colon, name = text.partition(":")
    path = Path(target).absolute()
    if not colon or not target.endswith(".py"):
        raise BadObjective(f"{text!r}: write FILE.py:NAME")
    if not path.is_file():
        raise BadObjective(f"there is no file {target}; write FILE.py:NAME")
    return _attribute(_import(_module_name(path), str(path)), name, target)


def describe(ref: ObjectiveRef) -> str:
    """The reference for a person, such as ``train.py:objective``."""
    if ref.arguments:
        given = ", ".join(f"{name}={value!r}" for name, value in json.loads(ref.arguments).items())
        return f"{ref.module}:{ref.name}({given})"
    return f"{ref.file or ref.module}:{ref.name}" if ref.name else "an objective sent by value"


def to_json(ref: ObjectiveRef) -> str:
    """The reference as plain data; an objective that is sent by value has none.

    Raises:
        ValueError: it is by value.
    """
    if ref.pickled:
        raise ValueError("an objective that is sent by value is not stored")
    plain = {"module": ref.module, "name": ref.name, "file": ref.file, "digest": ref.digest}
    if ref.arguments:
        plain["arguments"] = json.loads(ref.arguments)
    return json.dumps(plain)


def from_json(text: str) -> ObjectiveRef:
    """The reference that :func:`to_json` wrote, with today's digest and imports of its file."""
    plain = json.loads(text)
    if "arguments" in plain:
        return _by_recipe(f"{plain['module']}:{plain['name']}", plain["arguments"])
    if plain["file"] and not Path(plain["file"]).exists():
        raise BadObjective(f"the objective's file {plain['file']} is gone; pass another with objective=...")
    return _reference(plain["module"], plain["name"], plain["file"])


def _reference(module: str, name: str, file: str) -> ObjectiveRef:
    return ObjectiveRef(
        module=module,
        name=name,
        file=file,
        digest=_digest(file),
        sys_path=_sys_path(file),
        preload=imports(file),
    )


def _by_recipe(factory: str, arguments: Mapping[str, Any]) -> ObjectiveRef:
    """Made once here, so that what is wrong with it is known before anything is written."""
    module, _, name = factory.partition(":")
    text = json.dumps(dict(arguments), sort_keys=True)
    digest = hashlib.sha256(f"{factory} {text}".encode()).hexdigest()
    ref = ObjectiveRef(module=module, name=name, arguments=text, digest=digest, sys_path=_sys_path())
    load(ref)
    return replace(ref, preload=imports(getattr(sys.modules[module], "__file__", None) or ""))


def _made(factory: Any, ref: ObjectiveRef) -> Any:
    try:
        return factory(**json.loads(ref.arguments))
    except BadInput:
        raise
    except Exception as error:
        raise BadObjective(f"{ref.module}:{ref.name} makes no objective: {_one_line(error)}") from error


def _digest(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return ""


def _sys_path(file: str = "") -> tuple[str, ...]:
    """Folders to import from on a worker: those of this process, the file's own first."""
    folder = os.path.dirname(file)
    own = [folder] if file and not _is_package(folder) else []
    ours = [os.path.abspath(part or os.getcwd()) for part in sys.path]
    return tuple(
        dict.fromkeys(
            part for part in own + ours if os.path.isdir(part) and not is_installed_file(part + os.sep)
        )
    )


def _is_package(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, "__init__.py"))


def _from_text(text: str) -> ObjectiveRef:
    target, _, name = text.partition(":")
    name = name or "objective"
    if not target.endswith(".py"):
        if "/" in target or os.path.exists(target):
            raise BadObjective(f"{target!r} is not a Python file; write FILE.py:NAME or package.module:NAME")
        return _from_module(target, name)
    path = Path(target).absolute()
    if not path.is_file():
        raise BadObjective(f"there is no file {target}; write FILE.py:NAME or package.module:NAME")
    ref = _reference(_module_name(path), name, str(path))
    load(ref)
    return ref


def _from_module(target: str, name: str) -> ObjectiveRef:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a console script lacks it, "python -m" has it
    module = _import(target, "")
    found = _attribute(module, name, target)
    if not callable(found):
        raise BadObjective(f"{target}:{name} is {type(found).__name__}, not a function of the trial")
    file = getattr(module, "__file__", None) or ""
    return _reference(target, name, str(Path(file).absolute()) if file else "")


def _by_reference(objective: Callable[..., Any]) -> ObjectiveRef | None:
    """The reference of what an importable file has under a name; None where there is none."""
    for module_name in dict.fromkeys((getattr(objective, "__module__", ""), "__main__")):
        module: Any = sys.modules.get(module_name)
        file = getattr(module, "__file__", None)
        if not file or not Path(file).is_file() or not (name := _name_in(module, objective)):
            continue
        path = Path(file).absolute()
        if module_name != "__main__":
            return _reference(module_name, name, str(path))
        if not _has_guard(path):
            return None
        spec = getattr(module, "__spec__", None)  # set where "python -m package.module" was run
        return _reference(spec.name if spec is not None else _module_name(path), name, str(path))
    return None


def _name_in(module: ModuleType, objective: Callable[..., Any]) -> str:
    """The name of a function in its module, or of what wraps one; empty without one.

    An object of a class of the user's has none: what was changed in it would stay behind.
    """
    name = getattr(objective, "__qualname__", "")
    with contextlib.suppress(AttributeError):
        if inspect.ismethod(objective) or not name or "<" in name:
            return ""
        found: Any = functools.reduce(getattr, name.split("."), module)
        if found is objective:
            return str(name)
    if not hasattr(objective, "__wrapped__"):  # functools.wraps: its name is that of what it wraps
        return ""
    return next((key for key, value in vars(module).items() if value is objective), "")


def _module_name(path: Path) -> str:
    """The name that a file is imported under.

    Raises:
        BadObjective: an installed module that is loaded has it, and others would lose theirs.
    """
    check_folder(path.parent)
    name = path.stem.replace(".", "_")
    known = sys.modules.get(name)
    origin = getattr(known, "__file__", None) or "built in"
    if known is not None and not _same(origin, str(path)) and is_installed_file(origin):
        raise BadObjective(f"{path} has the name of the module {name!r} ({origin}); rename it")
    return name


def _has_guard(file: Path) -> bool:
    """Whether a script can be imported without running: ``if __name__ == "__main__":``."""
    with contextlib.suppress(OSError, SyntaxError):
        for node in ast.parse(file.read_text()).body:
            if (
                isinstance(node, ast.If)
                and "__name__" in ast.dump(node.test)
                and "__main__" in ast.dump(node.test)
            ):
                return True
    return False


def _by_value(objective: Callable[..., Any]) -> ObjectiveRef:
    pickled = by_value.dumps(objective)
    return ObjectiveRef(
        pickled=pickled, digest=by_value.digest(objective), sys_path=_sys_path(), preload=(TORCH,)
    )


def _attribute(module: ModuleType, name: str, where: str) -> Any:
    try:
        return functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
        ]
        has = f"it has: {', '.join(own)}" if own else "it defines no function"
        raise BadObjective(f"there is no {name!r} in {where}; {has}") from None


def _import(name: str, file: str) -> ModuleType:
    """Import a module by name, or the file under that name where the name means another file."""
    known = sys.modules.get(name)
    if known is not None and (not file or _same(getattr(known, "__file__", None), file)):
        return known
    _importing.append(file or name)
    try:
        package, dot, _ = name.partition(".")
        if file and not dot:  # whatever else has that name
            return _import_file(name, file)
        spec = importlib.util.find_spec(name) if package not in ("", "__main__") else None
        if spec is not None and (not file or _same(spec.origin, file)):
            return importlib.import_module(name)
        if not file:
            raise BadObjective(f"there is no module {name!r}; write FILE.py:NAME or package.module:NAME")
        return _import_file(name, file)
    except BadObjective:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if isinstance(error, ModuleNotFoundError) and not file and error.name == name.partition(".")[0]:
            raise BadObjective(
                f"there is no module {name!r}; write FILE.py:NAME or package.module:NAME"
            ) from None
        missing = isinstance(error, ModuleNotFoundError)
        where = f"; {sys.executable} has it neither installed nor beside the file" if missing else ""
        if isinstance(error, ImportError) and "no known parent package" in str(error) and file:
            where = f"; {_as_module(file)}"
        raise BadObjective(f"{_at(error, file or name)}: {_one_line(error)}{where}") from error
    finally:
        _importing.pop()


def _as_module(file: str) -> str:
    """How a file of a package is named so that its relative imports work."""
    parts, folder = [os.path.basename(file).removesuffix(".py")], os.path.dirname(file)
    while _is_package(folder):
        folder, name = os.path.split(folder)
        parts.insert(0, name)
    return f"write {'.'.join(parts)}:NAME, in {folder}" if len(parts) > 1 else "it is in no package"


def _import_file(name: str, file: str) -> ModuleType:
    folder = os.path.dirname(file)
    _check_once(folder)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if not os.path.isfile(file):
        raise BadObjective(
            f"the objective's file {file} is not here; send its folder with --working-dir DIR, or "
            "put it where all nodes can read it"
        )
    spec = compiled.spec(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        if before is not None:
            sys.modules[name] = before
        raise
    return module


@functools.cache
def _check_once(folder: str) -> None:  # not for each trial of a process that is kept, or forked
    if not _is_package(folder):
        check_folder(folder)


def _same(one: str | None, other: str) -> bool:
    return bool(one) and os.path.realpath(str(one)) == os.path.realpath(other)


def _at(error: BaseException, file: str) -> str:
    """``FILE line N`` where the error arose within the file, else in its importer."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename} line {error.lineno}"
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == file:
            line = frame.tb_lineno
        frame = frame.tb_next
    return f"{file} line {line}" if line else file


def _one_line(error: BaseException) -> str:
    said = error.msg if isinstance(error, SyntaxError) else str(error)  # its place is said before
    text = said.strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
