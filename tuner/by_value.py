"""Objectives that have no file to be imported from: a notebook's cells, lambdas, closures.

They travel as cloudpickle makes them, with the functions, classes and values of ``__main__`` that they
reach; modules travel by name, and are imported on the worker.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import logging
import types
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle

from tuner.errors import BadObjective

__all__ = ["digest", "dumps"]

log = logging.getLogger(__name__)

LARGE = 10 * 2**20
"""Bytes of an objective above which somebody should know: each attempt is sent them."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def dumps(objective: Callable[..., Any]) -> bytes:
    """The objective as bytes, for a worker.

    Raises:
        BadObjective: something that it reaches cannot be sent, or must not be: a study has the password of
            its database.
    """
    out = io.BytesIO()
    try:
        _Pickler(out).dump(objective)
    except BadObjective:
        raise
    except Exception as error:
        raise BadObjective(
            f"the objective {objective!r} cannot be sent to a worker ({error}); "
            "move it to the top of a file, and open files, locks and connections inside it"
        ) from error
    if out.tell() > LARGE:
        log.warning(
            "the objective carries %.0f MiB of values of this process to each trial; load them inside it, "
            "by tuner.shared once for each node",
            out.tell() / 2**20,
        )
    return out.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:
        import optuna

        if isinstance(obj, optuna.Study | optuna.storages.BaseStorage):
            what = f"the study {obj.study_name!r}" if isinstance(obj, optuna.Study) else "a storage"
            raise BadObjective(
                f"the objective uses {what} of this process, and workers never open the database; "
                "inside it use trial.study"
            )
        return super().reducer_override(obj)


def digest(objective: Callable[..., Any]) -> str:
    """SHA-256 of what the objective is: its source, and of ``__main__`` what it reaches: functions, classes,
    and plain values by their own. The same cells give the same digest in another kernel.

    Example:
        >>> digest(lambda trial: 1) == digest(lambda trial: 2)
        False
    """
    found = hashlib.sha256()
    state = None if inspect.isroutine(objective) else getattr(objective, "__dict__", None)
    for part in _all([objective, state], {}):
        found.update(part.encode(errors="surrogatepass") + b"\0")
    return found.hexdigest()


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    """The texts that describe a value, depth first; each object once."""
    if isinstance(value, _PLAIN):
        yield repr(value)
        return
    if id(value) in seen:
        return
    seen[id(value)] = value  # kept, for another object may get the number of one that is gone
    if isinstance(value, functools.partial):
        yield from _all([value.func, *value.args, *value.keywords.items()], seen)
    elif isinstance(value, types.MethodType):
        yield from _all([value.__func__, value.__self__], seen)
    elif isinstance(value, tuple | list):
        yield from _all(value, seen)
    elif isinstance(value, dict):
        yield from _all(list(value.items()), seen)
    elif isinstance(value, types.ModuleType):
        yield value.__name__
    elif not _is_of_main(value):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    elif isinstance(value, types.FunctionType):
        yield _source(value)
        yield from _all([*_reached(value), value.__defaults__, value.__kwdefaults__], seen)
    elif isinstance(value, type):
        # its source cannot be had in a notebook: what is in it can
        yield value.__qualname__
        inside = {name: one for name, one in vars(value).items() if name not in _NOT_OURS}
        yield from _all([*value.__bases__, *inside.items()], seen)
    else:
        yield from _all([type(value), getattr(value, "__dict__", None)], seen)


_NOT_OURS = ("__dict__", "__weakref__", "__module__", "__firstlineno__", "__static_attributes__")


def _all(values: Any, seen: dict[int, Any]) -> Iterator[str]:
    for one in values:
        yield from _parts(one, seen)


def _is_of_main(value: Any) -> bool:
    """Whether it is sent by value: defined here, or an instance of what is."""
    kind = value if isinstance(value, type | types.FunctionType) else type(value)
    return getattr(kind, "__module__", "") == "__main__" or "<" in getattr(kind, "__qualname__", "")


def _source(function: types.FunctionType) -> str:
    if function.__name__ == "<lambda>":  # its source is the whole line, which may have two of them
        return _code(function.__code__)
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # typed at a prompt, or made by exec
        return _code(function.__code__)


def _code(code: types.CodeType) -> str:
    inner = [
        _code(one)
        if isinstance(one, types.CodeType)
        # the order of a set is another in each process
        else repr(sorted(map(repr, one)) if isinstance(one, frozenset) else one)
        for one in code.co_consts
    ]
    return repr((code.co_name, code.co_code, code.co_names, code.co_varnames, inner))


def _reached(function: types.FunctionType) -> Iterator[Any]:
    """Globals and closed-over values by their names, in the order in which the code has them."""
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield name
            yield function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            continue


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from _names(one)
