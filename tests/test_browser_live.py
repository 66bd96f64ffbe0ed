"""A person steers a run in Chromium: sees why a trial failed, retries and watches it, stops and resumes."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from storage import Database, commands, reads
from tests.benchmarks.browser import FLAGS
from tests.dashboard_server import served

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent

OBJECTIVE = """
import time
from pathlib import Path

HERE = Path(__file__).parent

def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    if trial.number == 1:
        raise ValueError("the loss has no gradient")
    if trial.number > 1:
        for step in range(2):
            print(f"step {step} of trial {trial.number} begins", flush=True)
            trial.report(x + 1 - step, step)
            while not (HERE / f"{trial.number}-{step}").exists():
                if trial.should_stop():
                    raise KeyboardInterrupt
                time.sleep(0.02)
    return x
"""


@contextlib.contextmanager
def driven(folder: Path, words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A ``tuner`` command in its folder, with its log there."""
    argv = [sys.executable, "-m", "tuner", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "driver.log").open("a") as log:
        process = subprocess.Popen(argv, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


def until(condition: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert driver.poll() is None, "the driver has ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_person_finds_retries_watches_stops_and_resumes(chromium: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    (tmp_path / "train.py").write_text(OBJECTIVE)
    url = f"sqlite:///{tmp_path}/tuner.db"
    run = f"run train.py --study live --storage {url} --trials 9 --max-concurrent 1 --seed 1 --no-progress"

    def let(trial: int, step: int) -> None:
        (tmp_path / f"{trial}-{step}").touch()

    def state(number: int) -> str:
        found = reads.trial(database.engine, "live", number)
        return "" if found is None else found.state

    with contextlib.ExitStack() as stack:
        driver = stack.enter_context(driven(tmp_path, run.split()))
        until(lambda: (tmp_path / "tuner.db").exists(), driver)
        address = stack.enter_context(served(url, tmp_path))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        stack.callback(browser.close)
        page: Any = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        database = Database(url)
        stack.callback(database.dispose)
        until(lambda: state(2) == "RUNNING", driver)

        page.goto(f"{address}/?q=liv")  # find it
        page.get_by_role("link", name="live", exact=True).click()
        expect(page.locator("h1")).to_have_text("live")
        study = reads.study(database.engine, "live")
        assert study is not None
        shown = page.locator("[data-testid=stMetric]", has_text="Best").locator("[data-testid=stMetricValue]")
        expect(shown).to_have_text(f"{study.best:.5g}")  # as the database has it

        page.get_by_role("link", name="Failures", exact=True).click()  # why it failed
        expect(page.get_by_text("the loss has no gradient").first).to_be_visible()
        page.goto(f"{address}/trial?study=live&n=1")
        expect(page.locator("pre", has_text="Traceback")).to_contain_text("the loss has no gradient")

        page.get_by_role("button", name="Retry").click()  # once more
        link = page.get_by_role("link", name="→ trial 3")
        expect(link).to_be_visible()
        for step in range(2):
            let(2, step)
        until(lambda: state(3) == "RUNNING", driver)
        link.click()
        expect(page.get_by_role("heading", name="Trial 3")).to_be_visible()
        output = page.locator("[data-testid=stExpander]", has_text="Last output")  # watch it run
        expect(output).to_contain_text("step 0 of trial 3 begins")
        let(3, 0)
        expect(output).to_contain_text("step 1 of trial 3 begins")
        expect(page.get_by_text(re.compile("Newest report:.* at step 1"))).to_be_visible()

        page.goto(f"{address}/study?study=live")  # stop, after being asked
        question = page.get_by_role("dialog")
        page.get_by_role("button", name="Stop…").click()
        expect(question).to_contain_text("Study live")
        expect(question).to_contain_text("Nothing new starts")
        question.get_by_role("button", name="Cancel").click()
        expect(question).to_have_count(0)
        assert not [one for one in commands.recent(database.engine, "live") if one.name == "stop"]
        said = page.get_by_text(re.compile("live stops:.*running trials finish|did not answer within"))
        for _ in range(4):  # a driver on a busy machine may be slow to look: then it was taken back
            page.get_by_role("button", name="Stop…").click()
            question.get_by_role("button", name="Stop the study").click()
            expect(question).to_have_count(0)
            expect(said.first).to_be_visible()
            if "live stops" in (said.first.text_content() or ""):
                break
        let(3, 1)
        assert driver.wait(timeout=60) == 1  # it ended without what was asked
        assert state(3) == "COMPLETE"
        study = reads.study(database.engine, "live")
        assert study is not None
        assert study.stop_reason == "stopped by command"
        asked = commands.recent(database.engine, "live")[0]
        assert (asked.name, asked.author, asked.result) == ("stop", "dashboard", "done")
        expect(page.get_by_role("button", name="Stop…")).to_be_disabled()
        command = page.locator("code", has_text="tuner resume live").first
        expect(command).to_be_visible()

        words = shlex.split(command.text_content() or "")  # resume, as the page says
        assert words[0] == "tuner"
        again = stack.enter_context(driven(tmp_path, [*words[1:], "--no-progress"]))
        expect(page.locator("[data-testid=stMetric]", has_text="Running")).to_contain_text("1")
        until(lambda: state(4) == "RUNNING", again)
        assert state(5) == ""
