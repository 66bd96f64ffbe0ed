"""Messages in the plain form in which they cross between processes."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as some

from tuner.messages import (
    Finished,
    Log,
    Message,
    Report,
    Reports,
    Turn,
    UserAttr,
    decode,
    decode_all,
    encode,
)
from tuner.outcome import Outcome, Reason

VALUES = some.floats(allow_nan=True, allow_infinity=True)
STEPS = some.integers(0, 2**31 - 1)
SOMETIMES = some.sampled_from(["", "a line"])
MESSAGES = some.lists(
    some.one_of(
        some.builds(Report, step=STEPS, value=VALUES),
        some.builds(Log, step=STEPS, metrics=some.dictionaries(some.text(max_size=5), VALUES, max_size=2)),
        some.builds(Turn, at=STEPS, pid=STEPS, process=some.sampled_from([{}, {"host": "here"}])),
        some.builds(
            Finished,
            outcome=some.builds(
                Outcome,
                reason=some.sampled_from([Reason.COMPLETE, Reason.PRUNED]),
                values=some.lists(VALUES, max_size=2).map(tuple),
                message=SOMETIMES,
                log_tail=SOMETIMES,
            ),
            collateral=some.booleans(),
            device=some.sampled_from([None, 0]),
            seconds=some.floats(0, 1e9),
        ),
        some.builds(UserAttr, key=some.text(max_size=9), value=some.just('["Report", {"step": 1}]')),
    ),
    max_size=30,
)


@given(MESSAGES)
def test_many_lines_say_what_each_of_them_says(messages: list[Message]) -> None:
    lines = [encode(one) for one in messages]
    found: list[Message] = []
    for count, message in decode_all(lines):
        each: list[Message] = [message]
        if isinstance(message, Reports):
            assert len(message.values) > 1
            each = [Report(step=step, value=value) for step, value in message.values]
        assert count == len(each)
        found += each
    assert [encode(one) for one in found] == lines == [encode(decode(line)) for line in lines]
    assert repr([decode(line) for line in lines]) == repr(messages)  # NaN is not equal to itself


def test_values_that_json_has_not_are_reports_too() -> None:
    lines = [encode(Report(step=step, value=value)) for step, value in enumerate((1.5, math.inf, math.nan))]
    ((count, message),) = decode_all(lines)
    assert count == 3
    assert isinstance(message, Reports)
    assert message.values[:2] == ((0, 1.5), (1, math.inf))
    assert math.isnan(message.values[2][1])
