"""Pages in a real Chromium: how long until they are painted, and how much they were sent."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FLAGS", "PAINTED", "VIEWPORT", "Loaded", "Viewer", "viewer"]

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

VIEWPORT: Any = {"width": 1280, "height": 1000}

PAINTED = """marker => {
  const shown = one => {  // tables below the fold are drawn when they are scrolled to
    const box = one.getBoundingClientRect();
    return one.offsetParent !== null && box.height > 0 && box.top < innerHeight - 60;
  };
  const all = (selector, is) => [...document.querySelectorAll(selector)].filter(shown).every(is);
  const app = document.querySelector('[data-testid=stApp]');
  return app !== null && app.dataset.testScriptState === 'notRunning'
    && [...document.querySelectorAll(marker.selector)].some(one => one.textContent.includes(marker.text))
    && [...document.querySelectorAll('[data-testid=stSkeleton]')].filter(shown).length === 0
    && all('[data-testid=stDataFrame]', one => one.querySelector('canvas') !== null)
    && all('[data-testid=stVegaLiteChart]', one => one.querySelector('canvas, svg') !== null)
    && all('[data-testid=stPlotlyChart]', one => one.querySelector('canvas, svg') !== null);
}"""
"""Whether a page of Streamlit's shows all that it has, and is the one that the marker is of."""

ELSEWHERE = """#!/bin/sh
for cpu in /sys/fs/cgroup/cpu /sys/fs/cgroup; do
  mkdir -p $cpu/{group} && test -e $cpu/{group}/cpu.idle && echo $$ > $cpu/{group}/cgroup.procs && break
done
exec {chromium} "$@"
"""
"""A browser among the processes that :func:`give_way` speaks of. Chromium chooses its own niceness."""

GROUP = f"tuner-bench-{os.getpid()}"
GROUPS = (Path("/sys/fs/cgroup/cpu", GROUP), Path("/sys/fs/cgroup", GROUP))  # of cgroups 1 and 2

SETTLED = 0.15  # seconds that a page must stay as it is: what comes later counts too


@dataclass(kw_only=True)
class Loaded:
    """What opening a page took: seconds until it was painted; bytes of its data, and of static files."""

    seconds: float = 0.0
    data: int = 0
    static: int = 0


@dataclass(kw_only=True)
class Viewer:
    """One window of a browser, as one person has it."""

    page: Any
    _loaded: Loaded = field(default_factory=Loaded)

    def open(self, url: str, marker: dict[str, str] | None, *, painted: str = PAINTED) -> Loaded:
        """Go to an address, as from a bookmark."""
        return self._timed(lambda: self.page.goto(url, wait_until="commit"), marker, painted)

    def click(self, link: Any, marker: dict[str, str] | None) -> Loaded:
        """Follow a link of the page that is shown."""
        return self._timed(link.click, marker, PAINTED)

    def _timed(self, act: Any, marker: dict[str, str] | None, painted: str) -> Loaded:
        self._loaded = Loaded()
        began = time.perf_counter()
        act()
        while True:
            self.page.wait_for_function(painted, arg=marker, timeout=120_000, polling="raf")
            at = time.perf_counter()
            self.page.wait_for_timeout(1000 * SETTLED)
            if self.page.evaluate(painted, marker):
                self._loaded.seconds = at - began
                return self._loaded

    def count(self, size: int, static: bool) -> None:
        """So many bytes have come."""
        if static:
            self._loaded.static += size
        else:
            self._loaded.data += size


def give_way(yes: bool) -> bool:
    """Whether browsers that stand for others' machines get only the time that nothing else here wants.

    False where that cannot be had: it takes root and Linux 5.15.
    """
    for group in GROUPS:
        if (group / "cpu.idle").exists():
            (group / "cpu.idle").write_text("1" if yes else "0")
            return True
    return False


@contextlib.contextmanager
def viewer(playwright: Any, *, elsewhere: bool = False) -> Iterator[Viewer]:
    """A browser of its own with an empty cache.

    Args:
        elsewhere: it stands for one on another machine, see :func:`give_way`.
    """
    with tempfile.TemporaryDirectory(prefix="tuner-bench-") as folder:
        chromium = shutil.which("chromium")
        if elsewhere:
            program = Path(folder) / "chromium"
            program.write_text(ELSEWHERE.format(group=GROUP, chromium=chromium))
            program.chmod(0o700)
            chromium = str(program)
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        try:
            yield _watched(browser)
        finally:
            browser.close()
            for group in GROUPS:
                with contextlib.suppress(OSError):  # another browser is in it, or none was
                    group.rmdir()


def _watched(browser: Any) -> Viewer:
    """A window in which what comes is counted."""
    page = browser.new_context(viewport=VIEWPORT).new_page()
    found = Viewer(page=page)
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    static: dict[str, bool] = {}

    def answered(event: Any) -> None:
        url = event["response"]["url"]
        static[event["requestId"]] = "/static/" in url or url.endswith((".js", ".css", ".woff2"))

    network.on("Network.responseReceived", answered)
    network.on(
        "Network.loadingFinished",
        lambda event: found.count(int(event["encodedDataLength"]), static.get(event["requestId"], False)),
    )
    network.on(
        "Network.webSocketFrameReceived",
        lambda event: found.count(len(event["response"]["payloadData"]) * 3 // 4, False),  # base64
    )
    return found
