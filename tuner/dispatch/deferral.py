"""Modules that a library imports, and hardly anybody uses, are imported when something of them is used.

Each rank pays for what the process holds that it is forked from: its page tables are copied, and go with it.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__all__ = ["defer"]


def defer(name: str) -> None:
    """Put a module's stand-in where the module would be, if that is not imported yet.

    What is asked of the stand-in comes from the module itself, except for what every module has, such as its
    file: whoever looks through all modules is not to import this one.

    Example:
        >>> defer("pyclbr")
        >>> import pyclbr
        >>> hasattr(pyclbr, "__file__")
        False
        >>> pyclbr.readmodule.__name__
        'readmodule'
        >>> import pyclbr
        >>> hasattr(pyclbr, "__file__")
        True
    """
    if name in sys.modules:
        return
    stand_in = ModuleType(name)

    def ask(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    stand_in.__dict__["__getattr__"] = ask  # as PEP 562 has it
    sys.modules[name] = stand_in
