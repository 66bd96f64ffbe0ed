"""Webhooks: what happens to a study, as JSON by HTTP POST, without ever holding up the driver.

The body of a request is one object: ``event`` (``study_finished``, ``study_stopped``, ``new_best``,
``trial_failed``), ``study``, ``text`` (one line for a person), ``at`` (UTC), and what belongs to the
event: ``trial``, ``value``, ``params``, ``reason``, ``message``. Slack gets the form that it asks for,
``{"text": ...}``: at an address of ``hooks.slack.com``, or any with ``slack+`` before its ``https://``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import queue
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuner.errors import BadInput

__all__ = ["Alerts", "Webhook", "webhook"]

log = logging.getLogger(__name__)

TRIES = (0.0, 1.0, 5.0)  # seconds before each try to deliver an alert
TIMEOUT = 5.0  # seconds for one request
WAITING = 1_000  # alerts that wait at most; more are left out, and said to be
PARTING = 10.0  # seconds at the end of a run for what is left


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """Where alerts go. The address may hold a secret, and is in no message of ours.

    Attributes:
        name: scheme and host, for messages.
    """

    url: str
    slack: bool
    name: str

    def body(self, event: dict[str, Any]) -> bytes:
        """An event in the form that the receiver asks for."""
        return json.dumps({"text": event["text"]} if self.slack else event, default=str).encode()


def webhook(url: str) -> Webhook:
    """Read an address.

    Raises:
        BadInput: it is none of HTTP.

    Example:
        >>> webhook("https://hooks.slack.com/services/T0/B0/secret").name
        'https://hooks.slack.com'
    """
    plain = str(url).removeprefix("slack+")
    try:
        parts = urllib.parse.urlsplit(plain)
        host = parts.hostname or ""
    except ValueError:
        parts, host = urllib.parse.SplitResult("", "", "", "", ""), ""
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
        head, colon, _ = plain.partition(":")  # the rest may hold a secret
        shown = f"{head[:16]}{colon}..." if colon or len(head) > 16 else head
        raise BadInput(
            f"alerts: {shown!r} is no web address; give https://HOST/... of a webhook, without a user name "
            "(slack+https://... for one that takes Slack's form)"
        )
    slack = plain != url or host == "hooks.slack.com"
    return Webhook(url=plain, slack=slack, name=f"{parts.scheme}://{host}")


class Alerts:
    """Delivers events of one study from a thread of its own; nothing of it can fail its caller.

    Args:
        webhooks: none: nothing is sent, and no thread started.
    """

    def __init__(self, webhooks: Sequence[Webhook], study: str) -> None:
        self._webhooks = tuple(webhooks)
        self._study = study
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name="tuner-alerts", daemon=True)
        if self._webhooks:
            self._thread.start()

    def __bool__(self) -> bool:
        return bool(self._webhooks)

    def send(self, event: str, text: str, **fields: Any) -> None:
        """Queue an event; returns at once."""
        if not self._webhooks:
            return
        at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        line = f"{self._study}: {text}"
        try:
            self._queue.put_nowait({"event": event, "study": self._study, "text": line, "at": at, **fields})
        except queue.Full:
            log.warning("alerts: %d wait to be delivered; this one is left out: %s", WAITING, line)

    def close(self) -> None:
        """Deliver what is left, within some seconds."""
        if not self._webhooks or not self._thread.is_alive():
            return
        deadline = time.monotonic() + PARTING
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=PARTING)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            log.warning("alerts: %d were not delivered in %g s", max(1, self._queue.qsize()), PARTING)

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            for one in self._webhooks:
                self._deliver(one, event)

    def _deliver(self, webhook: Webhook, event: dict[str, Any]) -> None:
        why = ""
        for pause in TRIES:
            time.sleep(pause)
            try:
                request = urllib.request.Request(  # noqa: S310 - HTTP only: see webhook()
                    webhook.url,
                    data=webhook.body(event),
                    headers={"Content-Type": "application/json", "User-Agent": "tuner"},
                )
                with urllib.request.urlopen(request, timeout=TIMEOUT):  # noqa: S310
                    return
            except Exception as error:  # of the network, the receiver, or the body
                why = f"{type(error).__name__}: {getattr(error, 'reason', None) or error}"
        log.warning("alerts: %s did not take %r (%s)", webhook.name, event["event"], why)
