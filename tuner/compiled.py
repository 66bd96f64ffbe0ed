"""Modules of the user's own as they were found and compiled.

A process that is kept imports them anew for each trial, so that no trial finds what another has left in
them. To find and compile their files each time would cost more than a short trial does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from types import CodeType, ModuleType

__all__ = ["ahead", "remember", "spec"]

_SETTLED = 2 * 10**9  # nanoseconds after which every other change of a file shows in its times
_Stamp = tuple[int, int, int]


def remember(is_users: Callable[[str], bool]) -> None:
    """Let this process find and compile each file of the user's once, as long as it does not change.

    Args:
        is_users: whether a file is no installed one.
    """
    place = sys.meta_path.index(PathFinder)
    sys.meta_path.insert(place, _Finder(is_users))


def ahead(name: str, file: str) -> None:
    """Compile a file, and run nothing of it, for processes that are forked from this one.

    Raises:
        Exception: as its import would.
    """
    if (known := _loader(name, file)) is not None:
        known.get_code(name)
        known.find_cached()


def spec(name: str, file: str) -> ModuleSpec | None:
    """How a file is imported under this name, and what it is compiled to where that is remembered."""
    known = _loader(name, file)
    return spec_from_file_location(name, file) if known is None else known.spec


def _loader(name: str, file: str) -> _Loader | None:
    """What imports a file under this name; None where nothing is remembered."""
    if not any(type(one) is _Finder for one in sys.meta_path):
        return None
    now = _stamp(file)
    if (name, file) in _files and now is not None and now == _files[name, file][1]:
        return _files[name, file][0]
    made = _Loader(name, file)
    _files[name, file] = made, now
    return made


class _Finder:
    """What the path based finder finds, which is asked again only where something has changed."""

    def __init__(self, is_users: Callable[[str], bool]) -> None:
        self._is_users = is_users
        self._found: dict[tuple[str, tuple[str, ...]], tuple[str, _Stamp, list[str] | None]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As importlib asks."""
        key = (name, tuple(sys.path if path is None else path))
        if key in self._found:
            file, stamp, folders = self._found[key]
            if _stamp(file) == stamp:
                locations = None if folders is None else list(folders)
                return spec_from_file_location(
                    name, file, loader=_loader(name, file), submodule_search_locations=locations
                )
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or type(spec.loader) is not SourceFileLoader or not self._is_users(spec.loader.path):
            return spec
        file, now = spec.loader.path, _stamp(spec.loader.path)
        spec.loader = _loader(name, file)
        if now is not None:
            folders = None if spec.submodule_search_locations is None else [*spec.submodule_search_locations]
            self._found[key] = file, now, folders
        return spec


_files: dict[tuple[str, str], tuple[_Loader, _Stamp | None]] = {}


class _Loader(SourceFileLoader):
    def __init__(self, name: str, file: str) -> None:
        super().__init__(name, file)
        self.spec = spec_from_file_location(name, file, loader=self)
        self._code: CodeType | None = None

    def find_cached(self) -> None:
        """Look for what the file was compiled to before: a spec remembers the path that it has found."""
        _ = self.spec and self.spec.cached

    def get_code(self, fullname: str) -> CodeType | None:
        """Of the file as it was found: another loader is made where it has changed."""
        if self._code is None:
            self._code = super().get_code(fullname)
        return self._code


def _stamp(file: str) -> _Stamp | None:
    """When a file has last changed; None where that was so lately that another change would not show."""
    with contextlib.suppress(OSError):
        there = os.stat(file)
        if there.st_ctime_ns < time.time_ns() - _SETTLED:
            return there.st_ctime_ns, there.st_size, there.st_ino
    return None
