"""What a program says of itself: lines, files that grow, TensorBoard's event files, read as metrics.

============================ =====================================================================
source                       where metrics come from
============================ =====================================================================
``json``                     lines of standard output that are JSON: ``{"loss": 0.3, "step": 7}``
``regex:PATTERN``            lines of standard output in which it is found: named groups are metrics,
                             ``step`` the step; a single group without a name is the metric
``file``, ``file:PATH``      such lines of a file, or one object over several of them, or a number
``tensorboard[:FOLDER]``     scalars in TensorBoard's event files below a folder, by their tags
============================ =====================================================================

Without a path it is ``$TUNER_METRICS``, in the trial's folder. What is in a file before the program starts
does not count.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tuner
from objectives.external.space import pointed

__all__ = ["Metrics", "Source", "check_source", "open_source"]

_KINDS = ("json", "regex", "file", "tensorboard")
_MOST_STEP = 2**31 - 1
_SHOWN = 200  # characters of a line in an error
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|nan)")


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Numbers by name that belong together; ``step`` is None where the program gave none."""

    values: Mapping[str, float]
    step: int | None = None


class Source(Protocol):
    """What is read while a program runs."""

    def hear(self, line: str) -> Iterator[Metrics]:
        """A line of its standard output."""

    def look(self, is_last: bool) -> Iterator[Metrics]:
        """What is there beside its output; ``is_last`` once it has ended."""


def check_source(text: str, wanted: Sequence[str]) -> tuple[str, str]:
    """A source as kind and argument, such as ``("file", "out.jsonl")``.

    Args:
        wanted: names of the metrics that the program must give.

    Raises:
        BadInput: an unknown kind, a pattern that is none or lacks a group, a library that is not installed.
    """
    kind, colon, argument = text.partition(":")
    if kind not in _KINDS:
        raise tuner.BadInput(
            f"metrics={text!r}: choose json, regex:PATTERN, file[:PATH] or tensorboard[:FOLDER]"
        )
    if (kind == "regex") != bool(argument) and kind in ("json", "regex"):
        raise tuner.BadInput(f"metrics={text!r}: json takes nothing after it, regex a pattern: regex:PATTERN")
    if kind == "regex":
        _check_pattern(argument, wanted, len(kind) + len(colon), text)
    if kind == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise tuner.BadInput(f"metrics={text!r} needs a library: pip install 'tuner[tensorboard]'")
    return kind, argument


def open_source(kind: str, place: str, wanted: Sequence[str]) -> Source:
    """Begin to listen: what is there now does not count.

    Args:
        place: the pattern, file or folder.
    """
    match kind:
        case "regex":
            return _Lines(lambda line: _of_pattern(re.compile(place), line, wanted))
        case "file":
            return _File(Path(place), wanted)
        case "tensorboard":
            return _Events(Path(place))
    return _Lines(lambda line: _of_json(line, wanted))


@dataclass(frozen=True)
class _Lines:
    """Of standard output."""

    read: Callable[[str], Metrics | None]

    def hear(self, line: str) -> Iterator[Metrics]:
        found = self.read(line)
        if found is not None:
            yield found

    def look(self, is_last: bool) -> Iterator[Metrics]:
        return iter(())


class _File:
    """JSON in a file that grows, a line each, or in one that is whole at the end."""

    def __init__(self, path: Path, wanted: Sequence[str]) -> None:
        self._path = path
        self._wanted = wanted
        self._begin = self._offset = path.stat().st_size if path.is_file() else 0
        self._partial = b""
        self._is_silent = True

    def hear(self, line: str) -> Iterator[Metrics]:
        return iter(())

    def look(self, is_last: bool) -> Iterator[Metrics]:
        *lines, self._partial = (self._partial + self._grown()).split(b"\n")
        if is_last:
            lines.append(self._partial)
        for line in lines:
            yield from self._of_text(line)
        if is_last and self._is_silent:  # it may be one object over several lines
            self._offset, self._partial = self._begin, b""
            yield from self._of_text(self._grown())

    def _of_text(self, data: bytes) -> Iterator[Metrics]:
        text = data.decode(errors="replace").strip()
        found = _of_json(text, self._wanted)
        if found is None and len(self._wanted) == 1 and _NUMBER.fullmatch(text):
            found = Metrics(values={self._wanted[0]: float(text)})
        if found is not None:
            self._is_silent = False
            yield found

    def _grown(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._begin, self._offset, self._partial = 0, 0, b""
                file.seek(self._offset)
                found = file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise tuner.BadMetric(f"{self._path} cannot be read: {error.strerror}") from None
        self._offset += len(found)
        return found


class _Events:
    """Scalars in the event files below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._readers: dict[Path, Any] = dict.fromkeys(self._files())

    def hear(self, line: str) -> Iterator[Metrics]:
        return iter(())

    def look(self, is_last: bool) -> Iterator[Metrics]:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util import tensor_util

        for path in self._files():
            if path not in self._readers:
                self._readers[path] = EventFileLoader(str(path))
            if self._readers[path] is None:
                continue  # it was there before
            for event in self._readers[path].Load():
                for value in event.summary.value:
                    number = tensor_util.make_ndarray(value.tensor) if value.HasField("tensor") else None
                    if number is not None and number.size == 1 and number.dtype.kind in "fiu":
                        yield Metrics(values={value.tag: float(number.item())}, step=int(event.step))

    def _files(self) -> list[Path]:
        return sorted(self._folder.rglob("*tfevents*"))


def _of_json(line: str, wanted: Sequence[str]) -> Metrics | None:
    """The numbers of a JSON object; None for a line that is none, or has no numbers."""
    text = line.strip()
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        if any(f'"{name}"' in text for name in wanted):
            why = getattr(
                error, "msg", "too deep" if isinstance(error, RecursionError) else "a number is too long"
            )
            raise tuner.BadMetric(f"a line with a metric is no JSON ({why}): {_shown(text)}") from None
        return None
    numbers = {name: value for name, value in found.items() if name != "step" and _is_number(value)}
    for name in wanted:
        if name in found and name not in numbers:
            raise tuner.BadMetric(
                f"{name!r} is {found[name]!r}, which is no number, in the line: {_shown(text)}"
            )
    return _metrics(numbers, found.get("step"), text) if numbers else None


def _of_pattern(pattern: re.Pattern[str], line: str, wanted: Sequence[str]) -> Metrics | None:
    found = pattern.search(line)
    if found is None:
        return None
    groups = found.groupdict() if pattern.groupindex else {wanted[0]: found[1]}
    values = {}
    for name, text in groups.items():
        if name == "step" or text is None:
            continue
        try:
            values[name] = float(text)
        except ValueError:
            raise tuner.BadMetric(
                f"{name!r} is {text!r}, which is no number, in the line: {_shown(line)}"
            ) from None
    return _metrics(values, groups.get("step"), line) if values else None


def _metrics(values: Mapping[str, Any], step: Any, line: str) -> Metrics:
    try:
        plain = {name: float(value) for name, value in values.items()}
        number = None if step is None else int(step)
        if isinstance(step, bool) or (number is not None and float(step) != number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise tuner.BadMetric(f"the step or a number is none in the line: {_shown(line)}") from None
    if number is not None and not 0 <= number <= _MOST_STEP:
        raise tuner.BadMetric(f"step {number} is not from 0 to {_MOST_STEP}, in the line: {_shown(line)}")
    return Metrics(values=plain, step=number)


def _check_pattern(pattern: str, wanted: Sequence[str], start: int, text: str) -> None:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        message = f"metrics: this is no regular expression: {error.msg}"
        raise pointed(message, text, start + (error.pos or 0)) from None
    groups = set(compiled.groupindex)
    if not groups and compiled.groups == 1 and len(wanted) == 1:
        return
    missing = [name for name in wanted if name not in groups]
    if missing:
        group = f"(?P<{missing[0]}>...)" if groups and missing[0].isidentifier() else "(...)"
        raise tuner.BadInput(
            f"metrics={text!r} has no group for {missing[0]!r}; write {group} around its number"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(line: str) -> str:
    return line.strip() if len(line) <= _SHOWN else f"{line[:_SHOWN].strip()}..."
