"""Every page as axe-core sees it, in both themes: no serious finding (WCAG A and AA)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.browser import FLAGS, PAINTED, VIEWPORT, Viewer
from tests.benchmarks.pages import PAGES
from tests.dashboard_data import fill
from tests.dashboard_server import served

pytestmark = pytest.mark.browser

SHOWN = f"""marker => {{
  const channels = getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor;
  const [red] = channels.match(/\\d+/g).map(Number);
  return (red > 127) === (marker.scheme === 'light') && ({PAINTED})(marker);
}}"""
"""Whether the page is painted, and in the theme that the browser asks for."""


def test_no_page_has_a_serious_finding_in_either_theme(chromium: str, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    url = f"sqlite:///{tmp_path}/tuner.db"
    fill(url, 12)
    found = []
    with sync_playwright() as playwright, served(url, tmp_path) as address:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_context(viewport=VIEWPORT).new_page()
        for one in PAGES:
            path = one.path.replace("study=bench", "study=main").replace("n=103", "n=3")
            page.emulate_media(color_scheme="light")
            Viewer(page=page).open(address + path, dict(one.marker))
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.wait_for_function(SHOWN, arg=dict(one.marker, scheme=scheme))
                for finding in Axe().run(page).response["violations"]:
                    if finding["impact"] in ("serious", "critical"):
                        nodes = [node["html"][:200] for node in finding["nodes"]]
                        found.append((scheme, one.name, finding["id"], nodes))
        browser.close()
    assert found == []
