"""An export after the fact: the whole study as it is now."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from storage import Database, exports
from storage.filters import Filter
from tuner import store
from tuner.errors import BadInput
from tuner.exporters.base import Exporter, make

__all__ = ["closed_after", "export", "run"]


@contextlib.contextmanager
def closed_after(exporter: Exporter) -> Iterator[None]:
    """Close an exporter after the block.

    Raises:
        BadInput: its output cannot be written, such as on a full disk.
    """
    try:
        with contextlib.closing(exporter):
            yield
    except BrokenPipeError:
        raise  # who reads has enough
    except OSError as error:
        raise BadInput(
            f"output {exporter.where or 'to the terminal'}: cannot be written ({error.strerror or error}); "
            "make room, or name another"
        ) from error


def export(name: str, form: str, output: str | None = None, *, storage: str | None = None) -> str:
    """Export the study of that name; again updates what is there.

    Args:
        form: name of an exporter: ``"csv"``, ``"tensorboard"``, ...
        output: where to, as that exporter takes it.
        storage: database URL; default ``$TUNER_STORAGE``, else ``sqlite:///tuner.db``.

    Returns:
        Where it was written, for a person.

    Raises:
        BadInput, StudyNotFound, StoreUnavailable: one line that says what is wrong.

    Example:
        >>> tuner.exporters.export("digits", "csv", "digits.csv")  # doctest: +SKIP
        'digits.csv'
    """
    exporter = make(form, output)
    database = store.open_database(storage)
    try:
        with store.errors(), closed_after(exporter):
            run(database, name, exporter)
    finally:
        database.dispose()
    return exporter.where


def run(
    database: Database,
    name: str,
    exporter: Exporter,
    *,
    states: Sequence[str] = (),
    where: Sequence[Filter] = (),
) -> None:
    """Give a study to an exporter.

    Args:
        states, where: which trials, as for :func:`storage.reads.trials`; default: all.
    """
    study = exports.study(database, name)
    exporter.begin(study)
    for trial in exports.trials(
        database, study, exports.trial_ids(database, study, states=states, where=where)
    ):
        exporter.trial(trial)
    exporter.end(exports.study(database, name))
