"""What a hostile name does to a real browser: nothing. Behind a login, which a reload keeps."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import optuna
import pytest

import tuner
from tests.benchmarks.browser import FLAGS
from tests.dashboard_server import served

pytestmark = pytest.mark.browser

PASSWORD = "correct horse battery"
# What is shown short begins with something for each of Markdown, formulas and HTML.
ATTACK = (
    "**hacked-bold** [b](//hacked.example) $h$ <b class=hacked>b</b><script>window.hacked=1</script>"
    "<img src=//hacked.example/x onerror=window.hacked=1><a href=//hacked.example>a</a> "
    "[a](javascript:window.hacked=1) ![i](//hacked.example/i.png) :red[hacked] :material/home: :smile: "
    "'; DROP TABLE trials; -- \" {{7*7}} {hacked!r} %s \u202e\u0007 -> `code`"
)
LONG = "<i class=hacked>n</i>" + "n" * 9_979


def objective(trial: Any) -> float:
    x = trial.suggest_float(f"x.y[0] {ATTACK}", 0, 1)
    trial.suggest_categorical("kind", [ATTACK, LONG])
    trial.set_user_attr(f"attr {ATTACK}", LONG)
    trial.log({f"metric {ATTACK}": x}, 0)
    trial.report(x, 0)
    if trial.number == 1:
        raise ValueError(f"{ATTACK} {LONG}")
    return float(x)


def fill(file: Path) -> None:
    """Studies with hostile names: one of ours, and of plain Optuna with 10,000 characters, and NUL."""
    url = f"sqlite:///{file}"
    study = tuner.create_study(ATTACK, storage=url, seed=1, sampler="random")
    study.set_user_attr(ATTACK, LONG)
    tuner.optimize(study, objective, n_trials=4, executor="inline", progress=False)
    for name in (LONG, f"nul \0 {ATTACK}"):
        plain = optuna.create_study(study_name=name, storage=url, directions=["minimize", "maximize"])
        plain.optimize(lambda trial: (trial.suggest_float(f"z {ATTACK}", 0, 1), 1.0), n_trials=2)


PAGES = [
    "/",
    f"/?{urlencode({'q': ATTACK})}",
    *(f"/{page}?{urlencode({'study': ATTACK})}" for page in ("study", "trials", "failures", "workers")),
    *(f"/trial?{urlencode({'study': ATTACK, 'n': n})}" for n in (0, 1, ATTACK)),
    *(
        f"/analyse?{urlencode({'study': ATTACK, 'view': view})}"
        for view in ("", "slice", "parallel", "contour", "edf", ATTACK)
    ),
    f"/compare?{urlencode([('study', ATTACK), ('study', LONG)])}",
    f"/trials?{urlencode({'study': ATTACK, **dict.fromkeys(('where', 'sort', 'state', 'page'), ATTACK)})}",
    f"/study?{urlencode({'study': LONG})}",
    f"/trial?{urlencode({'study': LONG, 'n': 0})}",
    f"/analyse?{urlencode({'study': LONG, 'view': 'pareto'})}",
    f"/study?{urlencode({'study': f'nul {chr(0)} {ATTACK}'})}",
    f"/study?{urlencode({'study': f'no such {ATTACK}'})}",
]

FOUND = """() => ({
    ran: window.hacked ?? null,
    elements: [...document.querySelectorAll('.hacked, .katex, [src*=hacked], script:not([src])')]
        .filter(one => one.matches('.hacked, .katex, [src]') || one.text.includes('hacked'))
        .map(one => one.outerHTML),
    bold: [...document.querySelectorAll('strong, em, code')].map(one => one.textContent)
        .filter(text => text === 'hacked-bold' || text === 'code'),
    links: [...document.links].filter(one => one.host !== location.host).map(one => one.href),
    errors: [...document.querySelectorAll('[data-testid=stException]')].map(one => one.textContent),
})"""
CLEAN = {"ran": None, "elements": [], "bold": [], "links": [], "errors": []}


@pytest.mark.timeout(600)  # two dozen pages, each in a session of its own
@pytest.mark.fault("26: hostile names in the dashboard")
def test_hostile_names_are_text_on_every_page(chromium: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    fill(tmp_path / "tuner.db")
    passwords = tmp_path / "passwords"
    passwords.write_text(f"editor: {PASSWORD}\n")
    passwords.chmod(0o600)
    outside: list[str] = []
    expect.set_options(timeout=30_000)
    with (
        served(f"sqlite:///{tmp_path}/tuner.db", tmp_path, str(passwords)) as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        page = context.new_page()
        page.set_default_timeout(30_000)
        ours = (address, "data:", "blob:")
        page.on("request", lambda ask: None if ask.url.startswith(ours) else outside.append(ask.url))

        page.goto(f"{address}{PAGES[2]}")
        box = page.get_by_label("Password", exact=True)
        box.fill("wrong horse battery")
        box.press("Enter")
        expect(page.get_by_text("This is not the password.")).to_be_visible()
        assert "hacked" not in page.locator("body").inner_text()
        expect(box).to_have_value("")
        while page.get_by_role("button", name="Log out").count() == 0:  # a second's delay after a wrong one
            if box.count() and box.is_visible() and not box.input_value():
                box.fill(PASSWORD)
                box.press("Enter")
            page.wait_for_timeout(300)
        page.wait_for_function(
            "() => performance.getEntriesByType('resource').some(e => e.name.endsWith('/session'))"
        )
        (cookie,) = [one for one in context.cookies() if one["name"].startswith("tuner_dashboard")]
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")

        wrong = {}
        for asked in PAGES:
            page.goto(f"{address}{asked}")  # each a new session, which the cookie lets in
            page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
            expect(page.locator("h1").first).to_be_visible()
            expect(page.locator("[data-testid=stSkeleton]")).to_have_count(0)
            expect(page.get_by_role("button", name="Log out")).to_be_visible()
            found = page.evaluate(FOUND)
            if found != CLEAN:
                wrong[asked[:40]] = found
        assert wrong == {}
        page.goto(f"{address}{PAGES[2]}")
        expect(page.locator("h1")).to_contain_text("<b class=hacked>")

        page.get_by_role("button", name="Log out").click()
        expect(box).to_be_visible()
        page.reload()
        expect(box).to_be_visible()
        assert "hacked" not in page.locator("body").inner_text()
        browser.close()
    assert outside == []
    log = (tmp_path / "server.log").read_text()
    assert "No runtime found" not in log
    assert "A new study created" not in log
    assert PASSWORD not in log
    assert "Traceback" not in log, log
    assert "wrong horse" not in log
    with sqlite3.connect(tmp_path / "tuner.db") as connection:
        assert connection.execute("SELECT count(*) FROM trials").fetchone() == (8,)
