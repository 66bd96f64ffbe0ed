"""The values that cross between a rank, its shell and the driver.

Every message is frozen and has a plain JSON form, so that it can wait in an outbox, go over a
pipe, and be told apart after a take-over. A rank sends; the driver answers questions.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuner.outcome import Outcome, Reason

__all__ = [
    "Answer",
    "Ask",
    "Call",
    "Constraint",
    "Ended",
    "Envelope",
    "Finished",
    "Log",
    "Measured",
    "Message",
    "Output",
    "Param",
    "Question",
    "RankInfo",
    "Released",
    "Report",
    "Reports",
    "Sample",
    "Saved",
    "Started",
    "SystemAttr",
    "Turn",
    "Unanswered",
    "UserAttr",
    "decode",
    "decode_all",
    "encode",
    "is_report",
]


@dataclass(frozen=True, kw_only=True)
class Message:
    """Anything that goes from a rank (or its group) to the driver."""


@dataclass(frozen=True, kw_only=True)
class Param(Message):
    """Rank 0 fixed a parameter: internal representation and Optuna's distribution as JSON."""

    name: str
    value: float
    distribution: str


@dataclass(frozen=True, kw_only=True)
class Report(Message):
    """An intermediate value of the objective."""

    step: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Reports(Message):
    """Reports of rank 0 that follow each other, as a group delivers them: (step, value) in order."""

    values: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Log(Message):
    """Further metrics of a step."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Output(Message):
    """The last of what rank 0 has printed so far; its shell says so, now and then, while it runs."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Measured(Message):
    """What a rehearsal has found on one rank so far; see :mod:`tuner.rehearsal`.

    Attributes:
        seconds: since the attempt began there, the objective's import included.
        reports: the seconds at which it reported.
        memory: most bytes held at once, as ``Resources.memory`` counts them.
        resident: most bytes of its process resident at once, pages that others share included.
        gpu: most bytes of GPU memory that PyTorch reserved at once.
    """

    seconds: float
    reports: list[float]
    memory: int
    resident: int
    gpu: int


@dataclass(frozen=True, kw_only=True)
class UserAttr(Message):
    """A user attribute; ``value`` is what ``json.dumps`` accepts."""

    key: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class Constraint(Message):
    """A constraint's value; at most 0 is feasible."""

    key: str
    value: float


@dataclass(frozen=True, kw_only=True)
class SystemAttr(Message):
    """What a library of Optuna's noted on its trial: an artifact's link, the id of an MLflow run."""

    key: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class Question(Message):
    """A message that waits for an :class:`Answer` with the same ``id``."""

    id: int


@dataclass(frozen=True, kw_only=True)
class Sample(Question):
    """A parameter that did not travel with the trial. Answer: its internal representation."""

    name: str
    distribution: str


@dataclass(frozen=True, kw_only=True)
class Ask(Question):
    """``should_prune`` of rank 0. Answer: True or False, for every report made before it."""

    ordinal: int


@dataclass(frozen=True, kw_only=True)
class Saved(Question):
    """A rank's checkpoint is durable on its file system. Answer: None, once it is recorded.

    Attributes:
        world_size: of the attempt: the checkpoint is whole when so many ranks have saved it.
    """

    step: int
    path: str
    digest: str
    size: int
    world_size: int = 1


@dataclass(frozen=True, kw_only=True)
class Call(Question):
    """A member of ``trial.study``. Answer: its value in JSON form."""

    method: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """Where a rank runs: host name, Ray node id, process id, physical devices.

    Attributes:
        process: its process as :func:`storage.owner.identity` names it; empty where the rank has
            none of its own.
    """

    rank: int
    host: str
    node: str
    pid: int
    devices: tuple[str, ...] = ()
    process: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Unanswered(Message):
    """No driver was there to answer ``should_prune``: the shell said False."""

    ordinal: int


@dataclass(frozen=True, kw_only=True)
class Started(Message):
    """All ranks of an attempt have a process."""

    ranks: tuple[RankInfo, ...]


@dataclass(frozen=True, kw_only=True)
class Turn(Message):
    """An attempt of a series has begun; what follows is its own. The executor turns it into
    :class:`Started`; the driver never sees this one.

    Attributes:
        at: its place in the series, from 0.
        pid, process: what it runs in, as in :class:`RankInfo`; the shell adds the second.
    """

    at: int
    pid: int
    process: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finished(Message):
    """One rank's own word on its end, its last message. The executor turns the endings of all
    ranks into one :class:`Ended`; the driver never sees this one.

    Attributes:
        collateral: the error only says that a peer went away; the peer's end is the cause.
        device: which of the rank's GPUs failed its probe, from 0; None: none did.
        seconds: that the objective took; 0 where it was not called to its end.
    """

    outcome: Outcome
    collateral: bool = False
    device: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Ended(Message):
    """The attempt's outcome is decided. Sent once; nothing of the attempt follows but Released.

    Attributes:
        may_live: seconds for which a rank may still live where nobody reaches it: its node was
            cut off. No other attempt may begin before.
        seconds: that the objective took on rank 0; 0 where nobody knows.
    """

    outcome: Outcome
    may_live: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Released(Message):
    """Every process of the attempt is gone and its slot is free."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The driver's reply to a question: a JSON value, or the text of an error."""

    id: int
    value: Any = None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """A message with its sender: ``seq`` counts the messages of one rank in one attempt from 1."""

    number: int
    attempt: int
    rank: int
    seq: int
    message: Message


_TYPES: dict[str, type[Message]] = {
    cls.__name__: cls
    for cls in (
        Param,
        Report,
        Log,
        Output,
        Measured,
        UserAttr,
        SystemAttr,
        Constraint,
        Sample,
        Ask,
        Saved,
        Call,
        Started,
        Unanswered,
        Turn,
        Finished,
        Ended,
        Released,
    )
}


def encode(message: Message) -> str:
    """The message as one line of JSON.

    Raises:
        TypeError: a user attribute or argument is not plain data.
    """
    # Of what is said most json.dumps is a good part of the cost: a third of a report's, in the loop.
    if type(message) is Report and math.isfinite(message.value):
        return f'["Report", {{"step": {message.step}, "value": {float(message.value)!r}}}]'
    if type(message) is Turn and not message.process:
        return f'["Turn", {{"at": {message.at}, "pid": {message.pid}}}]'
    if type(message) is Finished and _is_plain(message):
        outcome = f'{{"reason": "complete", "values": {list(message.outcome.values)}}}'
        return f'["Finished", {{"outcome": {outcome}, "seconds": {message.seconds!r}}}]'
    if type(message) is Finished:
        fields = {**message.__dict__, "outcome": message.outcome.__dict__}  # asdict copies all that it finds
    else:
        fields = dataclasses.asdict(message) if isinstance(message, Started | Ended) else message.__dict__
    return json.dumps([type(message).__name__, fields])


def _is_plain(message: Finished) -> bool:
    """Whether it says no more than the values of a trial that is complete, and its seconds."""
    outcome = message.outcome
    more = outcome.message or outcome.traceback or outcome.exception or outcome.log_tail or message.collateral
    is_complete = outcome.reason is Reason.COMPLETE and message.device is None
    return is_complete and not more and all(map(math.isfinite, outcome.values))


def is_report(line: str) -> bool:
    """Whether it is the text of a report, by far the most of what there is."""
    return line.startswith('["Report",')


def decode_all(lines: Sequence[str]) -> Iterator[tuple[int, Message]]:
    """The messages of many lines, each with how many of the lines it is of: reports that follow each other
    are one.
    """
    for of_reports, run in itertools.groupby(lines, key=is_report):
        if of_reports:
            found = json.loads(f"[{','.join(run)}]")
            values = tuple((one["step"], one["value"]) for _, one in found)
            yield len(values), Report(**found[0][1]) if len(values) == 1 else Reports(values=values)
        else:
            for line in run:
                yield 1, decode(line)


def decode(line: str) -> Message:
    """The message that :func:`encode` wrote."""
    name, fields = json.loads(line)
    if name == "Started":
        ranks = tuple(RankInfo(**{**rank, "devices": tuple(rank["devices"])}) for rank in fields["ranks"])
        return Started(ranks=ranks)
    if "outcome" in fields:
        outcome = fields["outcome"]
        values = tuple(outcome["values"])
        fields["outcome"] = Outcome(**{**outcome, "reason": Reason(outcome["reason"]), "values": values})
    return _TYPES[name](**fields)
