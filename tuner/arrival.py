"""What is to be done once an objective has imported a module that was not there when its process began."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["on_import"]


class _Finder:
    """Stands before the other finders until the module comes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.actions: dict[str, Callable[[], None]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        _waiting.pop(name, None)
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                for act in self.actions.values():
                    act()

            spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


_waiting: dict[str, _Finder] = {}


def on_import(name: str, key: str, act: Callable[[], None]) -> None:
    """Call ``act`` right after the first import of a module, before whoever imports it has it.

    Args:
        name: of a top-level module that is not imported yet.
        key: what the action is for; another action for the same takes its place.
    """
    finder = _waiting.get(name)
    if finder is None:
        finder = _waiting[name] = _Finder(name)
    if finder not in sys.meta_path:
        sys.meta_path.insert(0, finder)
    finder.actions[key] = act
