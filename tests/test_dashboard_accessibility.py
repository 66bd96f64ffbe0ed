"""Every page as axe-core sees it, in both themes: no serious finding (WCAG A and AA)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.browser import FLAGS, VIEWPORT, Viewer
from tests.benchmarks.pages import PAGES
from tests.dashboard_data import fill
from tests.dashboard_server import served

pytestmark = pytest.mark.browser


def test_no_page_has_a_serious_finding_in_either_theme(chromium: str, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    url = f"sqlite:///{tmp_path}/tuner.db"
    fill(url, 12)
    found = []
    with sync_playwright() as playwright, served(url, tmp_path) as address:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        for scheme in ("light", "dark"):
            page = browser.new_context(color_scheme=scheme, viewport=VIEWPORT).new_page()
            for one in PAGES:
                path = one.path.replace("study=bench", "study=main").replace("n=103", "n=3")
                Viewer(page=page).open(address + path, dict(one.marker))
                for finding in Axe().run(page).response["violations"]:
                    if finding["impact"] in ("serious", "critical"):
                        nodes = [node["html"][:200] for node in finding["nodes"]]
                        found.append((scheme, one.name, finding["id"], nodes))
        browser.close()
    assert found == []
