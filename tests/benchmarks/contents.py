"""What a study's rows say, without ids and times: the same from both sides, or the run is void."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any

import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial

__all__ = ["Content", "Different", "compare", "of_tables", "of_trials"]

Number = float | str | None


class Different(AssertionError):
    """The two sides did not write the same rows."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """One trial.

    Attributes:
        started, completed: whether the trial has that time.
        values, reports: a float, or the name of an infinity or of NaN.
        params: internal value and distribution (JSON) by name.
    """

    number: int
    state: str
    started: bool
    completed: bool
    values: tuple[Number, ...]
    params: Mapping[str, tuple[float, str]]
    reports: Mapping[int, Number]
    attributes: Mapping[tuple[str, str], Any]


def of_trials(trials: Iterable[FrozenTrial]) -> list[Content]:
    """What trials that Optuna or we have loaded say."""
    return [
        Content(
            number=trial.number,
            state=trial.state.name,
            started=trial.datetime_start is not None,
            completed=trial.datetime_complete is not None,
            values=tuple(_named(value) for value in trial.values or ()),
            params={
                name: (trial.distributions[name].to_internal_repr(value), _json(trial.distributions[name]))
                for name, value in trial.params.items()
            },
            reports={step: _named(value) for step, value in trial.intermediate_values.items()},
            attributes={
                (kind, key): value
                for kind, attrs in (("user", trial.user_attrs), ("system", trial.system_attrs))
                for key, value in attrs.items()
            },
        )
        for trial in trials
    ]


def of_tables(url: str, study: str) -> list[Content]:
    """What the rows of Optuna's tables say, read by neither of the two sides."""
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:

        def rows(table: str, columns: str, order: str) -> Sequence[Any]:
            text = f"""SELECT {columns} FROM {table} WHERE trial_id IN (
                SELECT trial_id FROM trials JOIN studies USING (study_id) WHERE study_name = :study
            ) ORDER BY {order}"""
            return connection.execute(sa.text(text), {"study": study}).all()

        trials = rows(
            "trials", "trial_id, number, state, datetime_start, datetime_complete", "number, trial_id"
        )
        values: dict[int, list[Number]] = {row.trial_id: [] for row in trials}
        params: dict[int, dict[str, tuple[float, str]]] = {row.trial_id: {} for row in trials}
        reports: dict[int, dict[int, Number]] = {row.trial_id: {} for row in trials}
        attributes: dict[int, dict[tuple[str, str], Any]] = {row.trial_id: {} for row in trials}
        for trial, value, kind in rows("trial_values", "trial_id, value, value_type", "objective"):
            values[trial].append(value if kind == "FINITE" else kind)
        for trial, name, *pair in rows(
            "trial_params", "trial_id, param_name, param_value, distribution_json", "param_id"
        ):
            params[trial][name] = (pair[0], pair[1])
        columns = "trial_id, step, intermediate_value, intermediate_value_type"
        for trial, step, value, kind in rows("trial_intermediate_values", columns, "step"):
            reports[trial][step] = value if kind == "FINITE" else kind
        for owner in ("user", "system"):
            for trial, key, text in rows(f"trial_{owner}_attributes", "trial_id, key, value_json", "key"):
                attributes[trial][owner, key] = json.loads(text)
    engine.dispose()
    return [
        Content(
            number=row.number,
            state=row.state,
            started=row.datetime_start is not None,
            completed=row.datetime_complete is not None,
            values=tuple(values[row.trial_id]),
            params=params[row.trial_id],
            reports=reports[row.trial_id],
            attributes=attributes[row.trial_id],
        )
        for row in trials
    ]


def compare(found: Sequence[Content], expected: Sequence[Content], what: str) -> None:
    """Nothing when both are equal.

    Raises:
        Different: the first trial and field that are not, with both values.
    """
    for one, other in zip_longest(found, expected):
        if one == other:
            continue
        if one is None or other is None:
            raise Different(f"{what}: {len(found)} trials, expected {len(expected)}")
        name = next(
            field.name for field in fields(Content) if getattr(one, field.name) != getattr(other, field.name)
        )
        raise Different(
            f"{what}: trial {other.number} has {name} {getattr(one, name)!r}, "
            f"expected {getattr(other, name)!r}"
        )


def _named(value: float) -> Number:
    if math.isnan(value):
        return "NAN"
    return value if math.isfinite(value) else ("INF_POS" if value > 0 else "INF_NEG")


_texts: dict[int, tuple[Any, str]] = {}


def _json(distribution: Any) -> str:
    """The JSON of a distribution; thousands of trials share a few objects of them."""
    known = _texts.get(id(distribution))
    if known is None or known[0] is not distribution:
        known = _texts[id(distribution)] = (distribution, distribution_to_json(distribution))
    return known[1]
