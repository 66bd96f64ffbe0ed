"""The event log of a trial, in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dashboard.theme import duration, number
from storage.views import EventRow

__all__ = ["lines", "words"]

Detail = Mapping[str, Any]


def lines(events: Sequence[EventRow]) -> list[dict[str, str]]:
    """A line for each event, oldest first, with the time since the first one; plain text."""
    ordered = sorted(events, key=lambda event: event.event_id)
    return [
        {
            "time (UTC)": f"{event.created_at:%Y-%m-%d %H:%M:%S}",
            "after": duration((event.created_at - ordered[0].created_at).total_seconds()),
            "attempt": "" if event.attempt is None else str(event.attempt),
            "what happened": words(event),
        }
        for event in ordered
    ]


def words(event: EventRow) -> str:
    """An event as plain text; one that is not known here with its kind and its detail."""
    say = _WORDS.get(event.kind)
    if say is not None:
        return say(event.detail)
    detail = json.dumps(dict(event.detail), default=str) if event.detail else ""
    return f"{event.kind.replace('_', ' ')} {detail}".strip()


def _started(detail: Detail) -> str:
    step = detail.get("resumed_step")
    return "started" if step is None else f"started from the checkpoint of step {step}"


def _finished(detail: Detail) -> str:
    message = f": {detail['message']}" if detail.get("message") else ""
    return f"ended as {str(detail.get('state', '')).lower()} ({detail.get('reason')}){message}"


def _enqueued(detail: Detail) -> str:
    before = detail.get("retry_of", detail.get("again_of"))
    of = "" if before is None else f" as trial {before} again"
    return f"enqueued{of}" + (f" by {detail['author']}" if detail.get("author") else "")


def _retry_of(detail: Detail) -> str:
    step = detail.get("step")
    start = "" if step is None else f", from its checkpoint of step {step}"
    return f"tries trial {detail.get('of')} again{start}"


def _retry(detail: Detail) -> str:
    step = detail.get("from_step", -1)
    start = "from nothing" if step is None or step < 0 else f"from the checkpoint of step {step}"
    delay = f", after {duration(detail['delay'])}" if detail.get("delay") else ""
    message = f": {detail['message']}" if detail.get("message") else ""
    return f"failed ({detail.get('reason')}){message}; to be tried again {start}{delay}"


def _should_prune(detail: Detail) -> str:
    value = detail.get("value")
    shown = number(value) if isinstance(value, float) else value
    return f"{detail.get('pruner')} said to prune it at step {detail.get('step')}, where it reported {shown}"


_WORDS: Mapping[str, Callable[[Detail], str]] = {
    "started": _started,
    "finished": _finished,
    "enqueued": _enqueued,
    "retry": _retry,
    "retry_of": _retry_of,
    "should_prune": _should_prune,
    "should_prune_unanswered": lambda detail: "should_prune was answered False: no driver was there",
    "finished_elsewhere": lambda detail: "another program told this trial first",
    "checkpoint_damaged": lambda detail: f"the checkpoint of step {detail.get('step')} is damaged: not used",
    "checkpoints_apart": lambda detail: str(detail.get("why", "")),
    "adopted": lambda detail: "a new driver took it over while it ran",
    "waits_for_end": lambda detail: "a new driver waits for the end of the process that ran it",
    "last_words": lambda detail: "a new driver read what it had said while there was none",
}
