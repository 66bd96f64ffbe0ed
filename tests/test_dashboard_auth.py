"""Who may see and change what on the dashboard: the login in every state, and what the database refuses."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from streamlit.testing.v1 import AppTest

from dashboard import data, server
from dashboard.access import auth, gate, login, oidc
from storage import Database, Refused, StorageError
from storage.tables import commands

APP = str(Path(server.__file__).with_name("app.py"))
EDITOR, VIEWER = "correct horse battery", "just looking around"
PROVIDER = {
    "redirect_uri": "http://localhost/oauth2callback",
    "cookie_secret": "x" * 40,
    "client_id": "tuner",
}


class Clock:
    """Time that passes when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('auth')}/tuner.db"
    Database(url).dispose()
    optuna.create_study(study_name="main", storage=url)
    return url


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, filled: str, tmp_path: Path) -> Clock:
    """A server's set-up with a password for each role, and its clock."""
    file = tmp_path / "passwords"
    file.write_text(f"# who acts, who looks\neditor: {EDITOR}\nviewer: {VIEWER}\n")
    file.chmod(0o600)
    monkeypatch.setenv("TUNER_STORAGE", filled)
    monkeypatch.setenv(login.FILE, str(file))
    found, door = Clock(), auth.door()
    assert door is not None
    door.clock = found
    return found


def page() -> AppTest:
    return AppTest.from_file(APP, default_timeout=30).run()


def log_in(test: AppTest, password: str) -> AppTest:
    test.text_input[0].input(password)
    test.button[0].click().run()
    assert not test.exception
    return test


def title(test: AppTest) -> str:
    return str(test.title[0].value)


def said(test: AppTest) -> str:
    return "\n".join(str(part.value) for part in [*test.error, *test.text, *test.caption, *test.markdown])


def session_of(test: AppTest, act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What ``act`` gives in the session of a page, with the login that it holds."""
    state = {auth.TOKEN: test.session_state[auth.TOKEN]} if auth.TOKEN in test.session_state else {}
    with monkeypatch.context() as patched:
        patched.setattr("streamlit.session_state", state)
        return act()


# ---------------------------------------------------------------------- the gate


def test_without_a_login_this_machines_user_is_an_editor_and_others_see_nothing(
    monkeypatch: pytest.MonkeyPatch, filled: str
) -> None:
    monkeypatch.setenv("TUNER_STORAGE", filled)
    test = page()
    assert title(test) == "Studies"
    assert not [button for button in test.button if button.label == "Log out"]
    assert (auth.is_editor(), auth.name()) == (True, "dashboard")
    monkeypatch.setattr("dashboard.access.auth.address", lambda: "192.0.2.7")
    test = page()
    assert title(test) == "Tuner"
    assert "this machine only" in said(test)
    assert "main" not in said(test)


def test_nothing_is_read_or_shown_before_the_login(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*arguments: object, **options: object) -> None:
        pytest.fail("the database was opened")

    monkeypatch.setattr("dashboard.data.Database", opened)
    data._opened.clear()
    test = page()
    for view in ("studies", "overview", "trials", "trial", "analyse", "failures", "compare", "workers"):
        test.query_params["study"] = "main"
        test.switch_page(f"views/{view}.py").run()
        assert [part.value for part in test.title] == ["Tuner"]
        assert [part.label for part in test.text_input] == ["Password"]
        assert [*test.markdown, *test.caption, *test.text, *test.dataframe, *test.exception] == []
    with pytest.raises(Refused, match="log in"):
        data.read(data.reads.studies)


@pytest.mark.parametrize(("password", "role"), [(EDITOR, "editor"), (VIEWER, "viewer")])
def test_each_password_opens_the_pages_with_its_role(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, password: str, role: str
) -> None:
    test = log_in(page(), password)
    assert title(test) == "Studies"
    assert role in [caption.value for caption in test.caption]
    assert session_of(test, auth.is_editor, monkeypatch) is (role == "editor")
    assert session_of(test, auth.name, monkeypatch) == f"dashboard {role}"
    assert title(page()) == "Tuner"  # another session is not in


def test_a_wrong_password_is_said_and_stands_nowhere(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    test = log_in(page(), "wrong horse battery")
    assert "This is not the password" in said(test)
    everything = caplog.text + said(test)
    assert "a login of the dashboard failed, from 127.0.0.1: 1 in a row" in caplog.text
    assert "wrong horse" not in everything
    assert EDITOR not in everything


def test_a_new_session_does_not_escape_the_delay(clock: Clock) -> None:
    log_in(page(), "wrong horse battery")
    log_in(page(), "a try that is not looked at, nor counted")
    test = log_in(page(), EDITOR)
    assert title(test) == "Tuner"
    assert "wait 1 s" in said(test)
    clock.now += 1.01
    assert title(log_in(test, EDITOR)) == "Studies"


def test_a_login_ends_after_its_hours_or_when_its_holder_says_so(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    test, other = log_in(page(), EDITOR), log_in(page(), EDITOR)
    clock.now += login.HOURS * 3600 - 1
    assert title(test.run()) == "Studies"
    next(button for button in other.button if button.label == "Log out").click().run()
    assert title(other) == "Tuner"
    assert title(test.run()) == "Studies"
    clock.now += 1
    assert not session_of(test, auth.is_editor, monkeypatch)
    assert title(test.run()) == "Tuner"


# ---------------------------------------------------------------------- writes


def test_a_viewer_cannot_write_whatever_a_page_shows(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer, editor = log_in(page(), VIEWER), log_in(page(), EDITOR)
    with pytest.raises(Refused, match="log in as an editor"):
        session_of(viewer, data.database, monkeypatch)
    assert isinstance(session_of(editor, data.database, monkeypatch), Database)
    clock.now += login.HOURS * 3600
    with pytest.raises(Refused, match="log in as an editor"):
        session_of(editor, data.database, monkeypatch)


@pytest.mark.parametrize("statement", ["DELETE FROM trials", "CREATE TABLE x (y INTEGER)"])
def test_the_database_refuses_a_write_through_the_connection_of_the_reads(url: str, statement: str) -> None:
    Database(url).dispose()
    database = Database(url, read_only=True)
    row = {"study_uid": "u", "name": "stop", "arguments": "{}", "author": "x", "created_at": sa.func.now()}
    for change in (sa.text(statement), commands.insert().values(row)):
        with (
            pytest.raises(StorageError, match=r"read-?only"),
            database.errors(),
            database.write() as connection,
        ):
            connection.execute(change)
        with pytest.raises(sa.exc.DBAPIError, match=r"read-?only"), database.engine.connect() as connection:
            connection.execute(change)
    with database.read() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM trials")).scalar() == 0
    database.dispose()


def test_a_read_only_database_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no database"):
        Database(f"sqlite:///{tmp_path}/none.db", read_only=True)


# ---------------------------------------------------------------------- guessing


def test_the_delay_grows_for_an_address_and_for_all_that_never_got_in() -> None:
    clock = Clock()
    door = login.Door({"editor": EDITOR}, clock)
    assert door.try_password(EDITOR, "10.0.0.1").token

    waits = []
    for _ in range(12):
        assert door.try_password("wrong", "10.0.0.2") == login.Answer()
        waits.append(door.try_password("wrong", "10.0.0.2").wait)
        clock.now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]

    assert door.try_password("wrong", "10.0.0.3") == login.Answer()
    assert door.try_password(EDITOR, "10.0.0.4").wait == 8  # it has failed nowhere itself
    assert door.try_password(EDITOR, "10.0.0.1").token  # who has been in is not held up by strangers
    clock.now += 8
    assert door.try_password(EDITOR, "10.0.0.4").token
    clock.now += 3601
    door.try_password("wrong", "10.0.0.2")
    assert door.try_password("wrong", "10.0.0.2").wait == 1  # forgotten


def test_one_host_of_ipv6_is_one_address() -> None:
    clock = Clock()
    door = login.Door({"viewer": VIEWER}, clock)
    assert door.try_password(VIEWER, "2001:db8::9").token
    door.try_password("wrong", "2001:db8::1")
    assert door.try_password(VIEWER, "2001:db8::2").wait == 1
    assert door.try_password("wrong", "not an address") == login.Answer(wait=0.125)
    clock.now += 1
    door.try_password("wrong", "::ffff:192.0.2.1")
    assert door.try_password("wrong", "192.0.2.1").wait == 1


def test_a_ticket_is_worth_its_cookie_once() -> None:
    clock = Clock()
    door = login.Door({"viewer": VIEWER}, clock)
    token = door.try_password(VIEWER, None).token
    assert token
    ticket = door.ticket(token)
    assert door.waits(ticket)
    assert door.redeem(ticket) == token
    assert door.redeem(ticket) is None
    assert not door.waits(ticket)
    late, ended = door.ticket(token), door.ticket(token)
    clock.now += 61
    assert door.redeem(late) is None
    door.end(token)
    assert door.redeem(ended) is None
    assert door.role(token) is None


# ---------------------------------------------------------------------- a provider


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, filled: str) -> Callable[..., AppTest]:
    """The page for an account that a provider named."""
    monkeypatch.setenv("TUNER_STORAGE", filled)
    monkeypatch.setattr(oidc.importlib.util, "find_spec", lambda name: object())

    def shown(**claims: Any) -> AppTest:
        test = AppTest.from_file(APP, default_timeout=30)
        test.secrets["auth"] = {**PROVIDER, "mine": {"client_id": "other"}}
        test.secrets["tuner"] = {"editors": ["Ann@example.org"], "viewers": ["*@example.org"]}
        known = {"is_logged_in": True, "email_verified": True, "iat": time.time()}
        test.user = {**known, **claims} if claims else {"is_logged_in": False}
        return test.run()

    return shown


@pytest.mark.parametrize(
    ("claims", "shows"),
    [
        ({"email": "ann@example.org"}, "editor"),
        ({"email": "Bob@example.org"}, "viewer"),
        ({"email": "eve@example.com"}, "not among the viewers"),
        ({"email": "ann@example.org", "email_verified": False}, "has not verified"),
        ({"email": "ann@example.org", "email_verified": None}, "has not verified"),
        ({"email": "ann@example.org", "iat": time.time() - login.HOURS * 3601}, "has expired"),
        ({"email": None}, "has not verified"),
        ({}, ""),
    ],
)
def test_an_account_has_the_role_of_its_verified_address(
    account: Callable[..., AppTest], claims: dict[str, Any], shows: str
) -> None:
    test = account(**claims)
    assert not test.exception
    assert title(test) == ("Studies" if shows in ("editor", "viewer") else "Tuner")
    assert shows in said(test)
    if title(test) == "Tuner":
        assert [button.label for button in test.button] == ["Log in with your account", "Log in with mine"]


def test_a_missing_package_for_the_provider_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, filled: str
) -> None:
    monkeypatch.setenv("TUNER_STORAGE", filled)
    monkeypatch.setattr(oidc.importlib.util, "find_spec", lambda name: None)
    test = AppTest.from_file(APP, default_timeout=30)
    test.secrets["auth"] = PROVIDER
    test.run()
    assert title(test) == "Tuner"
    assert "pip install 'streamlit[auth]'" in said(test)


# ---------------------------------------------------------------------- how it is set up


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (f"editor: {EDITOR}", 0o640, "chmod 600"),
        ("editor: short", 0o600, "at least 8 characters"),
        (f"{EDITOR}", 0o600, "line 1 of the password file"),
        (f"admin: {EDITOR}", 0o600, "line 1 of the password file"),
        (f"editor: {EDITOR}\n\neditor: {EDITOR}", 0o600, "line 3 of the password file"),
        (f"editor: {EDITOR}\nviewer: {EDITOR}", 0o600, "give each its own"),
        ("# nothing\n", 0o600, "is empty"),
        (None, 0o600, "No such file"),
    ],
)
def test_a_bad_password_file_is_refused_in_one_line_without_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filled: str, text: str | None, mode: int, message: str
) -> None:
    file = tmp_path / "passwords"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(ValueError, match=message) as caught:
        server.command("sqlite:///tuner.db", password_file=str(file))
    assert "\n" not in str(caught.value)
    assert EDITOR not in str(caught.value)
    monkeypatch.setenv("TUNER_STORAGE", filled)
    monkeypatch.setenv(login.FILE, str(file))
    test = page()  # a server that was started with it is shut, not open
    assert title(test) == "Tuner"
    assert message in said(test)


@pytest.mark.fault("28: dashboard on another address without a login")
@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org", ""])
def test_another_address_is_refused_without_a_login(
    host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="--password-file") as caught:
        server.command("sqlite:///tuner.db", host=host)
    assert "\n" not in str(caught.value)


def test_with_a_login_another_address_is_served_and_nothing_secret_is_an_argument(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(login.PASSWORD, EDITOR)
    pem = tmp_path / "pem"
    pem.touch()
    url = "postgresql://ann:secret@db/tuner"
    argv, environment = server.command(url, host="192.168.1.2", cert=str(pem), key=str(pem))
    assert argv[argv.index("--server.address") + 1] == "192.168.1.2"
    assert argv[argv.index("--server.sslCertFile") + 1] == str(pem)
    assert argv[argv.index("--server.enableCORS") + 1] == "true"
    assert argv[argv.index("--server.enableXsrfProtection") + 1] == "true"
    assert not [word for word in argv if EDITOR in word or "secret" in word]
    assert environment["TUNER_STORAGE"] == url
    with pytest.raises(ValueError, match="two files"):
        server.command(url, cert=str(pem))
    with pytest.raises(ValueError, match="no such file"):
        server.command(url, cert=str(pem), key=str(tmp_path / "none"))


def test_without_a_login_only_this_machines_names_are_answered() -> None:
    argv, _ = server.command("sqlite:///tuner.db")
    names = [argv[place + 1] for place, word in enumerate(argv) if word == "--server.allowedHosts"]
    assert names == ["127.0.0.1", "localhost", "::1"]


def test_answers_of_several_writes_do_not_wait_for_one_another() -> None:
    def sends_at_once(listener: socket.socket) -> bool:
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            return bool(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with socket.socket(socket.AF_INET) as listener:  # as Streamlit makes it
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not sends_at_once(listener)
        server.send_at_once()
        assert sends_at_once(listener)


def test_the_server_asks_no_outside_service_for_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlit import net_util
    from streamlit.web.server import server_util

    from dashboard import web

    asked: list[str] = []
    monkeypatch.setattr(net_util, "_make_blocking_http_get", lambda address, **options: asked.append(address))
    assert web.app is not None
    assert not server_util.is_url_from_allowed_origins("http://foreign.example")
    assert asked == []
    argv, _ = server.command("sqlite:///tuner.db")
    assert argv[argv.index("--logger.hideWelcomeMessage") + 1] == "true"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:hunter2@127.0.0.1:1/tuner",
        "postgresql://ann@127.0.0.1:1/tuner?password=hunter2",
        "postgresql://ann:hunter2@127.0.0.1:port/tuner",
        "mysql://ann:hunter2@127.0.0.1/tuner",
    ],
)
def test_a_password_of_the_database_is_masked_on_every_page(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_STORAGE", url)
    test = page()
    assert "The database cannot be read" in said(test)
    assert "***" in said(test)
    assert "hunter2" not in str(test)
    assert gate.TICKET not in str(test)
