"""Webhooks: who hears what, in which form, and that none of it holds up or fails the run."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import tuner
from tuner import alerts


class Receiver:
    """A web server of the test that keeps what is posted.

    Attributes:
        refuse: how many of the next requests it answers with an error.
    """

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.refuse = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.refuse > 0:
                    receiver.refuse -= 1
                    self.send_error(503)
                    return
                receiver.bodies.append(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook?token=secret"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "TRIES", (0.0, 0.0, 0.0))


def objective(trial: Any) -> float:
    x = trial.suggest_float("x", 0, 1)
    if trial.number == 1:
        raise ValueError("too small")
    return float(trial.number if trial.number != 3 else 100) + 0 * x


def run(storage: str, **given: Any) -> Any:
    study = tuner.create_study("s", storage=storage, sampler="random", seed=1)
    return tuner.optimize(study, objective, executor="inline", progress=False, **given)


def test_a_study_tells_of_its_best_its_failures_and_its_end(sqlite_url: str, receiver: Receiver) -> None:
    run(sqlite_url, n_trials=4, alerts=[receiver.url])
    assert [(one["event"], one.get("trial")) for one in receiver.bodies] == [
        ("new_best", 0),
        ("trial_failed", 1),
        ("study_finished", None),
    ]
    best, failed, finished = receiver.bodies
    assert (best["study"], best["value"]) == ("s", 0.0)
    assert set(best["params"]) == {"x"}
    assert (failed["reason"], failed["message"]) == ("exception", "ValueError: too small")
    assert finished["text"] == "s: budget of 4 trials spent"


def test_a_study_that_stops_on_failures_says_so(sqlite_url: str, receiver: Receiver) -> None:
    def fails(trial: Any) -> float:
        raise ValueError("always")

    study = tuner.create_study("s", storage=sqlite_url, sampler="random", seed=1)
    with pytest.raises(tuner.StudyStopped):
        tuner.optimize(
            study,
            fails,
            n_trials=9,
            executor="inline",
            progress=False,
            retry=tuner.Retry(stop_after=2),
            alerts=receiver.url,
        )
    events = [one["event"] for one in receiver.bodies]
    assert events == ["trial_failed", "trial_failed", "study_stopped"]
    assert "always" in receiver.bodies[-1]["message"]


def test_slack_gets_its_form(sqlite_url: str, receiver: Receiver) -> None:
    run(sqlite_url, n_trials=1, alerts=[f"slack+{receiver.url}"])
    assert receiver.bodies == [
        {"text": "s: trial 0 is the new best: 0"},
        {"text": "s: budget of 1 trials spent"},
    ]


def test_a_receiver_that_refuses_is_tried_again(sqlite_url: str, receiver: Receiver) -> None:
    receiver.refuse = 2
    run(sqlite_url, n_trials=1, alerts=[receiver.url])
    assert [one["event"] for one in receiver.bodies] == ["new_best", "study_finished"]


def test_a_receiver_that_is_not_there_fails_nothing_and_its_secret_stays_one(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        study = run(sqlite_url, n_trials=2, alerts=["http://127.0.0.1:1/hook?token=secret"])
    assert len(study.trials) == 2
    assert "alerts: http://127.0.0.1 did not take 'study_finished'" in caplog.text
    assert "secret" not in caplog.text
    assert b"token=secret" not in (tmp_path / "tuner.db").read_bytes()


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(alerts, "WAITING", 3)
    monkeypatch.setattr(alerts, "PARTING", 0.2)
    release = threading.Event()
    monkeypatch.setattr(alerts.Alerts, "_deliver", lambda self, webhook, event: release.wait(30))
    made = alerts.Alerts([alerts.webhook("http://127.0.0.1:1/")], "s")
    for number in range(10):
        made.send("new_best", f"trial {number}")
    made.close()
    release.set()
    assert "this one is left out: s: trial 9" in caplog.text
    assert "were not delivered" in caplog.text


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "hooks", "http://", "slack+mailto:me", "http://[bad", "https://ann:secret@host/x"]
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(tuner.BadInput, match="is no web address; give https://") as error:
        alerts.webhook(url)
    assert "secret" not in str(error.value)
