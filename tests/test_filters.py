"""Pages of trials, filtered and sorted in SQL, agree with a model over what Optuna itself loads."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Engine

from storage import Database, Refused, reads
from storage.conditions import parse, parse_all
from storage.filters import AttrFilter, Filter, NumberFilter, ParamFilter, ValueFilter
from storage.pages import SORTS

NAN, INF = math.nan, math.inf
CHOICES = ("adam", "sgd", None, True, 3, 2.5, "3", NAN)
DISTRIBUTIONS = {
    "lr": FloatDistribution(1e-3, 10, log=True),
    "width": IntDistribution(1, 64),
    "kind": CategoricalDistribution(CHOICES),
    "batch": CategoricalDistribution((64, 16, 32)),
}
ATTRS = (1, 1.0, 2.5, -3, "a", "a b", 'quo"te', True, None, [1, 2], {"k": 1}, NAN, INF, -INF, 10**400)
NUMBERS = st.sampled_from((-INF, -1.5, 0.0, 0.25, 1.0, 3.0, INF))
START = dt.datetime(2026, 1, 1, 12)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    database = Database(url)
    yield database.engine
    database.dispose()


def plain_study(engine: Engine, name: str | None = None, objectives: int = 1) -> optuna.Study:
    url = engine.url.render_as_string(hide_password=False)
    return optuna.create_study(study_name=name, storage=url, directions=["minimize"] * objectives)


@st.composite
def frozen(draw: st.DrawFn) -> FrozenTrial:
    state = draw(st.sampled_from(list(TrialState)))
    optional: dict[str, st.SearchStrategy[Any]] = {
        "lr": st.sampled_from((0.01, 0.1, 1.0)),
        "width": st.sampled_from((1, 3, 64)),
        "kind": st.sampled_from(CHOICES),
        "batch": st.sampled_from((16, 32, 64)),
    }
    params = draw(st.fixed_dictionaries({}, optional=optional))
    distributions = {name: DISTRIBUTIONS[name] for name in params}
    done = state.is_finished()
    took = dt.timedelta(microseconds=draw(st.sampled_from((0, 1, 250, 1_000_001, 90_000_000_000))))
    began = None if state == TrialState.WAITING else START + dt.timedelta(seconds=draw(st.integers(0, 2)))
    has_values = state == TrialState.COMPLETE or (state == TrialState.PRUNED and draw(st.booleans()))
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=state,
        value=None,
        values=[draw(NUMBERS), draw(NUMBERS)] if has_values else None,
        datetime_start=began,
        datetime_complete=began + took if done and began else None,
        params=params,
        distributions=distributions,
        user_attrs=draw(st.fixed_dictionaries({}, optional={"note": st.sampled_from(ATTRS)})),
        system_attrs={},
        intermediate_values=draw(
            st.dictionaries(st.sampled_from((0, 1, 7)), st.sampled_from((NAN, INF, 0.5)))
        ),
    )


BOUND = st.one_of(st.none(), st.sampled_from((-INF, 0.1, 1.0, 3, INF, -1.5)))
WANTED = st.lists(st.sampled_from((*CHOICES, 0.1, 1, 16, 10**400)), max_size=2).map(tuple)
FILTERS: st.SearchStrategy[Filter] = st.one_of(
    st.builds(
        ParamFilter, name=st.sampled_from((*DISTRIBUTIONS, "none")), low=BOUND, high=BOUND, any_of=WANTED
    ),
    st.builds(ValueFilter, objective=st.sampled_from((0, 1, 2)), low=BOUND, high=BOUND),
    st.builds(AttrFilter, key=st.just("note"), equals=st.sampled_from(ATTRS)),
    st.builds(NumberFilter, low=st.sampled_from((None, -(2**70), 2)), high=st.sampled_from((None, 3, 2**70))),
)
ORDERS = st.sampled_from(
    (
        *SORTS,
        "value:0",
        "value:1",
        "value:7",
        "attr:note",
        "attr:none",
        *(f"param:{one}" for one in DISTRIBUTIONS),
    )
)


def equal(one: object, other: object) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return one == other or (one != one and other != other)


def within(number: object, low: float | None, high: float | None) -> bool:
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    return (-INF if low is None else low) <= number <= (INF if high is None else high)


def matches(trial: FrozenTrial, wanted: Filter) -> bool:
    match wanted:
        case NumberFilter():
            return within(trial.number, wanted.low, wanted.high)
        case ValueFilter():
            values = trial.values or []
            return len(values) > wanted.objective and within(
                values[wanted.objective], wanted.low, wanted.high
            )
        case AttrFilter():
            if "note" not in trial.user_attrs:
                return False
            found = trial.user_attrs["note"]
            return equal(found, wanted.equals) if type(found) is not list else found == wanted.equals
        case ParamFilter():
            if wanted.name not in trial.params:
                return False
            found = trial.params[wanted.name]
            listed = not wanted.any_of or any(equal(found, one) for one in wanted.any_of)
            bounded = wanted.low is not None or wanted.high is not None
            return listed and (not bounded or within(found, wanted.low, wanted.high))


def sort_key(trial: FrozenTrial, sort: str) -> Any:
    """Something that compares; None for what comes last."""
    kind, _, name = sort.partition(":")
    values, steps = trial.values or [], trial.intermediate_values
    found: Any = None
    match kind:
        case "number":
            found = trial.number
        case "state":
            found = trial.state.value
        case "value":
            found = values[int(name or 0)] if len(values) > int(name or 0) else None
        case "duration":
            found = trial.duration
        case "started":
            found = trial.datetime_start
        case "completed":
            found = trial.datetime_complete
        case "last_step":
            found = max(steps, default=None)
        case "last_value":
            found = steps[max(steps)] if steps else None
        case "param":
            found = trial.params.get(name)
            if name in trial.params and name == "kind":
                number = isinstance(found, int | float) and not isinstance(found, bool)
                return (
                    None
                    if found != found
                    else (not number, found if number else 0, "" if number else str(found))
                )
        case "attr" if name in trial.user_attrs:
            found = trial.user_attrs[name]
            number = isinstance(found, int | float) and not isinstance(found, bool)
            text = "" if number else json.dumps(found)[:-1]
            return None if found != found else (not number, found if number else 0, text)
    return None if found is None or found != found else found


def model(
    trials: list[FrozenTrial], states: list[str], where: list[Filter], sort: str, descending: bool
) -> list[int]:
    wanted = [
        trial
        for trial in trials
        if (not states or trial.state.name in states) and all(matches(trial, one) for one in where)
    ]
    keyed = [(sort_key(trial, sort), trial.number) for trial in wanted]
    there = sorted((pair for pair in keyed if pair[0] is not None), reverse=descending)
    missing = sorted((number for key, number in keyed if key is None), reverse=descending)
    return [number for _, number in there] + missing


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    trials=st.lists(frozen(), min_size=1, max_size=7),
    asked=st.lists(
        st.tuples(
            st.lists(st.sampled_from([state.name for state in TrialState]), max_size=2),
            st.lists(FILTERS, max_size=2),
            ORDERS,
            st.booleans(),
        ),
        min_size=12,
        max_size=12,
    ),
    size=st.integers(1, 4),
)
def test_a_page_is_what_a_model_over_optunas_trials_says(
    engine: Engine, trials: list[FrozenTrial], asked: list[Any], size: int
) -> None:
    study = plain_study(engine, objectives=2)
    study.add_trials(trials)
    loaded = study.get_trials(deepcopy=False)
    for states, where, sort, descending in asked:
        expected = model(loaded, states, where, sort, descending)
        found: list[int] = []
        for page in range(1, len(loaded) // size + 2):
            read = reads.trials(
                engine,
                study.study_name,
                page=page,
                size=size,
                states=states,
                where=where,
                sort=sort,
                descending=descending,
            )
            assert read.total == len(expected)
            found += [row.number for row in read.rows]
            for row in read.rows:
                assert list(row.values) == (loaded[row.number].values or [])
                assert repr(row.params) == repr(loaded[row.number].params)
        assert found == expected, (states, where, sort, descending)


HOSTILE = [
    "'; DROP TABLE trials; --",
    '"quoted" \\ %_',
    "<script>alert(1)</script>",
    "a<b>=c",
    "name: ü 漢 🙂",
    "n" * 512,
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_data_in_filters_and_orders(engine: Engine, name: str) -> None:
    study = plain_study(engine, name)
    for at in range(3):
        trial = optuna.trial.create_trial(
            value=float(at),
            params={name: name if at else "other"},
            distributions={name: CategoricalDistribution((name, "other"))},
            user_attrs={name: name} if at == 2 else {},
        )
        study.add_trial(trial)

    def numbers(*where: Filter, sort: str = "number") -> list[int]:
        return [row.number for row in reads.trials(engine, name, where=where, sort=sort).rows]

    assert numbers(ParamFilter(name=name, any_of=(name,))) == [2, 1]
    assert numbers(AttrFilter(key=name, equals=name)) == [2]
    assert numbers(ParamFilter(name="*")) == []
    assert numbers(sort=f"attr:{name}")[0] == 2
    assert sorted(numbers(sort=f"param:{name}")) == [0, 1, 2]
    text = f"param:{json.dumps(name)}={json.dumps(name)}"
    assert numbers(parse(text)) == [2, 1]
    assert [row.name for row in reads.studies(engine, name)] == [name]


@pytest.mark.parametrize(
    "refused",
    [
        lambda: ParamFilter(name="a\0b"),
        lambda: AttrFilter(key="n" * 513, equals=1),
        lambda: AttrFilter(key="a", equals="\0"),
        lambda: AttrFilter(key="a", equals=object()),
        lambda: ParamFilter(name="lr", low=NAN),
        lambda: ValueFilter(objective=-1),
        lambda: ValueFilter(high=NAN),
    ],
)
def test_what_no_database_holds_is_refused_in_one_line(refused: Callable[[], Filter]) -> None:
    with pytest.raises(Refused) as error:
        refused()
    assert "\n" not in str(error.value)


def test_a_name_that_no_database_holds_is_nowhere(engine: Engine) -> None:
    for name in ("a\0b", "\ud800"):
        assert reads.trials(engine, name).total == 0
        assert reads.studies(engine, name) == []
        assert reads.study(engine, name) is None
        assert reads.changes(engine, name).cursor is None
    plain_study(engine, "s")
    for sort in ("zzz", "param:", "param:a\0", "value:x", "value:-1", "value:", "number:1"):
        with pytest.raises(Refused):
            reads.trials(engine, "s", sort=sort)
    assert reads.trials(engine, "s", page=10**12).rows == ()


def test_equal_ones_keep_their_order_over_pages(engine: Engine) -> None:
    study = plain_study(engine, "ties")
    for _ in range(9):
        study.add_trial(optuna.trial.create_trial(value=1.0))
    for sort in ("value", "state", "param:none"):
        for descending in (False, True):
            pages = [
                reads.trials(engine, "ties", page=page, size=2, sort=sort, descending=descending).rows
                for page in range(1, 6)
            ]
            found = [row.number for page in pages for row in page]
            assert found == sorted(range(9), reverse=descending)


BELOW = math.nextafter(0.1, -INF)
TEXTS: dict[str, Filter] = {
    "lr<0.1": ParamFilter(name="lr", high=BELOW),
    " lr <= 1e-1 ": ParamFilter(name="lr", high=0.1),
    "lr>0.1": ParamFilter(name="lr", low=math.nextafter(0.1, INF)),
    "lr>=.1": ParamFilter(name="lr", low=0.1),
    "lr=0.1": ParamFilter(name="lr", any_of=(0.1,)),
    "optimizer=adam": ParamFilter(name="optimizer", any_of=("adam",)),
    "optimizer == adam, sgd": ParamFilter(name="optimizer", any_of=("adam", "sgd")),
    "optimizer='a,b',c": ParamFilter(name="optimizer", any_of=("a,b", "c")),
    'size="3"': ParamFilter(name="size", any_of=("3",)),
    "flag=true,False,None": ParamFilter(name="flag", any_of=(True, False, None)),
    "param:value>1": ParamFilter(name="value", low=math.nextafter(1.0, INF)),
    '"a<b"=1': ParamFilter(name="a<b", any_of=(1,)),
    '"value"=1': ParamFilter(name="value", any_of=(1,)),
    "value>=0.9": ValueFilter(low=0.9),
    "value:1=-inf": ValueFilter(objective=1, low=-INF, high=-INF),
    "value<inf": ValueFilter(high=math.nextafter(INF, 0)),
    "value>inf": ValueFilter(low=INF, high=-INF),
    "value<-inf": ValueFilter(low=INF, high=-INF),
    "attr:note=a, b": AttrFilter(key="note", equals="a, b"),
    "attr:note=[1, 2]": AttrFilter(key="note", equals=[1, 2]),
    "number>=100": NumberFilter(low=100),
    "number<100": NumberFilter(high=99),
    "number=7": NumberFilter(low=7, high=7),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_condition_is_read_as_a_person_means_it(text: str) -> None:
    assert parse(text) == TEXTS[text]


BAD = {
    "lr": "write NAME, a sign",
    "": "write NAME, a sign",
    "=3": "write NAME, a sign",
    "lr!=3": "'!=' is not among the signs",
    "lr<": "no value after '<'",
    "lr<abc": "'abc' is not a number",
    "value=adam": "'adam' is not a number",
    "value<nan": "'nan' is not a number",
    "value:x<3": "'x' is no objective",
    "number>2.5": "'2.5' is not a whole number",
    "attr:note<3": "can only be equal",
    "0.1<lr": "write the name first",
    "0.01<lr<0.1": "write the name first",
    '"\\q"=3': "not a name in double quotes",
    "x" * 600 + "=1": "has 600 characters",
    "a\0b=1": "NUL",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_bad_condition_is_one_line_that_says_what_to_write(text: str) -> None:
    with pytest.raises(Refused, match=BAD[text]) as error:
        parse(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    with contextlib.suppress(Refused):
        parse_all(text)


@pytest.mark.parametrize(
    "text", ["lr<1" + " " * 1_000_000 + "x", '"' + '\\"' * 500_000, " and ".join(["lr<1"] * 51)]
)
def test_conditions_that_would_hold_up_a_server_are_refused_at_once(text: str) -> None:
    with pytest.raises(Refused, match="at most"):
        parse_all(text)


def test_conditions_are_joined_by_and() -> None:
    assert parse_all("  ") == ()
    assert parse_all("lr<0.1 and optimizer=adam") == (parse("lr<0.1"), parse("optimizer=adam"))
    assert parse_all('kind="this and that" and number>1') == (
        ParamFilter(name="kind", any_of=("this and that",)),
        NumberFilter(low=2),
    )
