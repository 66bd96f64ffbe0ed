"""Modules that a library imports, and hardly anybody uses, run once something of them is used.

Each rank pays for what the process holds that it is forked from: its page tables are copied, and go with it.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

__all__ = ["defer"]


def defer(name: str) -> None:
    """Let a module of one file run only once something of it is used; nothing, if it is imported already.

    Unlike with ``importlib.util.LazyLoader``, to ask for a name that it has not is no use, nor for what every
    module has, such as its file: whoever looks through all modules does not run this one.

    Example:
        >>> import sys
        >>> defer("pyclbr")
        >>> import pyclbr
        >>> hasattr(pyclbr, "__file__"), hasattr(pyclbr, "nothing"), "readmodule" in vars(pyclbr)
        (True, False, False)
        >>> pyclbr.readmodule.__name__
        'readmodule'
        >>> sys.modules["pyclbr"] is pyclbr, "readmodule" in vars(pyclbr)
        (True, True)
    """
    if name not in sys.modules:
        sys.meta_path.insert(0, _Finder(name))


class _Finder:
    """Stands before the other finders until the module is imported."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As importlib asks."""
        if name != self._name:
            return None
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        spec = importlib.util.find_spec(name)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            code = spec.loader.get_code(name)
            if code is not None:
                spec.loader = _Loader(name, spec.loader.path, code)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self._code = code

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__[_WAITING] = _Waiting(self._code)


class _Waiting:
    """What a module has not run yet."""

    def __init__(self, code: CodeType) -> None:
        self.code = code
        self.names = frozenset(code.co_names)  # all that its top level can set
        self.lock = threading.RLock()
        self.has_begun = False


_WAITING = "__deferred__"


class _Deferred(ModuleType):
    def __getattr__(self, name: str) -> Any:
        waiting = vars(self).get(_WAITING)
        if waiting is None or name.startswith("__") or name not in waiting.names:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        _run(self, waiting)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        waiting = vars(self).get(_WAITING)
        if waiting is not None and not name.startswith("__"):
            _run(self, waiting)  # else it would set the same name later
        ModuleType.__setattr__(self, name, value)  # it may be a plain module by now


def _run(module: ModuleType, waiting: _Waiting) -> None:
    with waiting.lock:  # another thread waits for the end
        if waiting.has_begun:
            return
        waiting.has_begun = True
        try:
            exec(waiting.code, vars(module))  # noqa: S102 - as importlib does
        except BaseException:
            waiting.has_begun = False  # who asks next hears why, too
            raise
        del vars(module)[_WAITING]
        object.__setattr__(module, "__class__", ModuleType)
