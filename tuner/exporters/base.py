"""What an exporter is, and how one is found: by the name of an entry point."""

from __future__ import annotations

import abc
import importlib.metadata
from typing import ClassVar, Literal

from storage.exports import ExportedStudy, ExportedTrial
from tuner.errors import BadInput, TunerError

__all__ = ["GROUP", "Exporter", "make", "names"]

GROUP = "tuner.exporters"
"""The entry points that exporters are found by."""


class Exporter(abc.ABC):
    """Takes one study to another program: after the fact, or while it runs.

    The same trial may come again, also from another process: after an interrupted export, a resumed
    run, or because it has grown. It is given whole each time, and replaces what was there: an
    export that is repeated changes nothing.

    During a run all calls come from one thread that is not the driver's. What they raise is said
    once, and the trial comes again later; the run goes on.

    Args:
        output: where to: a file, a folder, an address, as the exporter takes it; None for its default.
            The constructor checks it, and writes nothing.

    Attributes:
        takes: when a trial is given during a run: ``"running"``: as soon as it has begun, and again
            when it has grown; ``"finished"``: once it has ended; ``"end"``: all of them at the end.
        where: what was written, for a person: ``wrote <where>``; "" says nothing.

    Raises:
        BadInput: the output cannot be used.

    Example:
        >>> class Names(Exporter):
        ...     def trial(self, trial):
        ...         print(trial.number, trial.state, trial.values)
    """

    takes: ClassVar[Literal["running", "finished", "end"]] = "finished"

    def __init__(self, output: str | None) -> None:
        self.where = output or ""

    def begin(self, study: ExportedStudy) -> None:  # noqa: B027 - most need not
        """Before the first trial; and again before one that has a parameter which ``study`` did not have."""

    @abc.abstractmethod
    def trial(self, trial: ExportedTrial) -> None:
        """One trial, as it is now."""

    def end(self, study: ExportedStudy) -> None:  # noqa: B027
        """Every trial has been given; ``study`` as it is now, with its best checkpoint."""

    def close(self) -> None:  # noqa: B027
        """Let go of everything; called once, also after a failure. What was not ended may stay as it is."""


def names() -> list[str]:
    """The exporters that are installed, sorted."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=GROUP)})


def make(name: str, output: str | None = None) -> Exporter:
    """The exporter of that name.

    Raises:
        BadInput: there is none; a package that it needs is missing; or the output cannot be used.

    Example:
        >>> make("parquet", "digits.parquet").takes
        'end'
    """
    found = next(iter(importlib.metadata.entry_points(group=GROUP, name=name)), None)
    if found is None:
        raise BadInput(f"there is no exporter {name!r}; there are: {', '.join(names()) or 'none'}")
    try:
        exporter = found.load()(output)
    except TunerError:
        raise
    except ImportError as error:
        ours = found.value.startswith(f"{GROUP}.")
        step = f"pip install 'tuner[{name}]'" if ours else f"repair the package of {found.value}"
        raise BadInput(f"the exporter {name!r} cannot be imported ({error}): {step}") from error
    except Exception as error:
        text = " ".join(str(error).split())
        raise BadInput(f"the exporter {name!r} cannot be used ({type(error).__name__}: {text})") from error
    if not isinstance(exporter, Exporter):
        raise BadInput(f"the exporter {name!r} ({found.value}) is no tuner.exporters.Exporter")
    return exporter
