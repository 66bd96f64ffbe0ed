"""What a person does in a real Chromium: find a study, open a trial, see why it failed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

import optuna
import pytest

from tests.benchmarks.browser import FLAGS
from tests.dashboard_data import HOSTILE, fill
from tests.dashboard_server import served

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a dashboard on a filled database."""
    folder = tmp_path_factory.mktemp("dashboard")
    url = f"sqlite:///{folder}/tuner.db"
    fill(url)
    long = optuna.create_study(study_name="long", storage=url)
    space = {"x": optuna.distributions.FloatDistribution(0, 60)}
    long.add_trials(
        [optuna.create_trial(value=float(x), params={"x": x}, distributions=space) for x in range(60)]
    )
    with served(url, folder) as found:
        yield found


def test_a_person_finds_out_why_a_trial_failed(chromium: str, address: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    outside: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        page.on(
            "request",
            lambda asked: (
                None if asked.url.startswith((address, "data:", "blob:")) else outside.append(asked.url)
            ),
        )
        page.goto(f"{address}/study?study=main")  # the server's first page: it goes through the entry too
        expect(page.locator("h1")).to_have_text("main")
        assert page.title() == "Tuner"
        assert page.locator("[data-testid=stSidebarNav]").count() == 0

        page.goto(address)
        expect(page.locator("h1")).to_have_text("Studies")
        page.get_by_role("link", name="main", exact=True).click()
        expect(page.locator("h1")).to_have_text("main")
        assert "study=main" in page.url

        page.goto(f"{address}/trials?study=main&state=FAIL")
        page.wait_for_selector("[data-testid=stDataFrame] canvas")
        table = page.locator("[data-testid=stDataFrame]").last
        expect(page.get_by_text("Select a row to see the trial.")).to_be_visible()
        table.locator(".dvn-scroller").click(position={"x": 18, "y": 52})  # the first row's box
        expect(page.get_by_role("heading", name="Trial 3")).to_be_visible()
        assert re.search(r"[?&]n=3\b", page.url)
        expect(page.locator("pre", has_text="Traceback (most recent call last)")).to_contain_text(
            "<b>no luck</b>"
        )

        page.goto(address)
        link = page.get_by_role("link").filter(has_text="DROP TABLE")
        expect(link).to_be_visible()
        plain = (link.text_content() or "").replace("\u2060", "")
        assert plain == f"{HOSTILE[:57]}..."
        link.click()
        expect(page.locator("h1")).to_contain_text("DROP TABLE")
        heading = (page.locator("h1").text_content() or "").replace("\u2060", "")
        assert HOSTILE[:77] in heading
        assert page.locator("h1 script, h1 strong, h1 a[href='b']").count() == 0
        browser.close()
    assert outside == []


def test_the_csv_button_gives_all_trials_as_they_are_filtered_and_sorted(chromium: str, address: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
        page.set_default_timeout(30_000)

        def asked(query: str, button: str) -> tuple[str, list[dict[str, str]]]:
            page.goto(f"{address}/trials?{query}")
            page.wait_for_selector("[data-testid=stDataFrame] canvas")
            with page.expect_download() as download:
                page.get_by_role("button", name=button, exact=True).click()
            text = download.value.path().read_text()
            return download.value.suggested_filename, list(csv.DictReader(io.StringIO(text)))

        name, rows = asked("study=long&sort=value&page=2", "CSV of 60 trials")
        assert name == "long.csv"
        assert [int(row["number"]) for row in rows] == list(range(59, -1, -1)), "those of both pages"
        assert [float(row["params_x"]) for row in rows] == [float(row["value"]) for row in rows]
        name, rows = asked("study=main&state=FAIL,PRUNED&where=number>0&order=asc", "CSV of 2 trials")
        assert [(row["number"], row["state"]) for row in rows] == [("3", "FAIL"), ("5", "PRUNED")]
        assert rows[0]["reason"] == "exception"
        browser.close()
