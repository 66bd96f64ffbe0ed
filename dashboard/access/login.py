"""The login by password: where the passwords come from, how often one may guess, how long a login lasts.

Nothing here knows of Streamlit. :mod:`dashboard.access.auth` asks it at the door.
"""

from __future__ import annotations

import collections
import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "FILE",
    "HOURS",
    "PASSWORD",
    "VARIABLES",
    "VIEWER_PASSWORD",
    "Answer",
    "Door",
    "Misconfigured",
    "Viewer",
    "passwords",
]

FILE = "TUNER_DASHBOARD_PASSWORD_FILE"
PASSWORD = "TUNER_DASHBOARD_PASSWORD"  # noqa: S105 - the name of a variable
VIEWER_PASSWORD = "TUNER_DASHBOARD_VIEWER_PASSWORD"  # noqa: S105
VARIABLES = (FILE, PASSWORD, VIEWER_PASSWORD)

HOURS = 12
"""For how long a login lasts, over reloads and restarts of the browser."""

_ROLES = ("editor", "viewer")
_SHORTEST = 8
_log = logging.getLogger("tuner.dashboard")


class Misconfigured(ValueError):
    """The login is not set up as it should be; one line that says how."""


def passwords(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Role: password, as the file or the variables of an environment give them; empty without either.

    The file has a line ``editor: PASSWORD`` and one ``viewer: PASSWORD``, or one of the two.

    Raises:
        Misconfigured: a file that others may read, that is missing or has another line; a short
            password; the same one for both roles.
    """
    file = environment.get(FILE)
    if file:
        found = _of_file(Path(file))
    else:
        given = {"editor": environment.get(PASSWORD), "viewer": environment.get(VIEWER_PASSWORD)}
        found = {role: password for role, password in given.items() if password}
    where = f"the file {file}" if file else f"${PASSWORD} or ${VIEWER_PASSWORD}"
    for role, password in found.items():
        if len(password) < _SHORTEST:
            raise Misconfigured(
                f"the {role}'s password in {where} is short; give at least {_SHORTEST} characters"
            )
    if len(set(found.values())) < len(found):
        raise Misconfigured(f"editor and viewer have one password in {where}; give each its own")
    return found


def _of_file(file: Path) -> dict[str, str]:
    try:
        with open(file, encoding="utf-8", opener=_at_once) as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise Misconfigured(f"the password file {file} is no regular file; write one of mode 0600")
            if mode & 0o077:
                raise Misconfigured(f"the password file {file} can be read by others; run: chmod 600 {file}")
            lines = [line.strip() for line in opened]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise Misconfigured(f"the password file {file} cannot be read: {reason}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        role, colon, password = (part.strip() for part in line.partition(":"))
        if not line or line.startswith("#"):
            continue
        if not colon or role not in _ROLES or role in found or not password:  # the line itself is a secret
            raise Misconfigured(
                f"line {number} of the password file {file} is not 'editor: PASSWORD' or 'viewer: PASSWORD', "
                "each once"
            )
        found[role] = password
    if not found:
        raise Misconfigured(f"the password file {file} is empty; write a line 'editor: PASSWORD'")
    return found


def _at_once(path: str, flags: int) -> int:
    """Opens without waiting for anyone to write to a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """Who is logged in: the author of a command, and ``"editor"`` or ``"viewer"``."""

    name: str
    role: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a try: a new login's token; else, where the try was not looked at, the seconds to wait."""

    token: str | None = None
    wait: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Login:
    role: str
    until: float


@dataclass(kw_only=True)
class _Failures:
    """What failed in a row, and the time before which nobody may try again."""

    count: int = 0
    last: float = 0.0
    closed_until: float = 0.0

    def add(self, now: float, first: float, most: float) -> None:
        self.count += 1
        self.last = now
        self.closed_until = now + min(most, first * 2 ** min(self.count - 1, 30))


class Door:
    """Checks passwords, slows down who guesses, and remembers who is in. One for all of a server's sessions.

    After each failure its address waits 1, 2, 4 s and so on up to 5 minutes; addresses that never got
    in wait for each other as well, at most 8 s, so that many of them guess no faster than one. A try
    within the wait is not looked at. Who is in is not held up.

    Args:
        passwords: role: password.
        clock: seconds that only grow.
    """

    _OWN = (1.0, 300.0)
    _ALL = (0.125, 8.0)
    _FORGET = 3600.0
    _MOST_ADDRESSES = 10_000

    def __init__(self, passwords: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._digests = {role: _digest(password) for role, password in passwords.items()}
        self._lock = threading.Lock()
        self._logins: dict[str, _Login] = {}
        self._tickets: dict[str, tuple[str, float]] = {}
        self._failures: collections.OrderedDict[str, _Failures] = collections.OrderedDict()
        self._all = _Failures()
        self._known: set[str] = set()

    def try_password(self, password: str, address: str | None) -> Answer:
        """Let in who knows a password; ``address`` is None for this machine's own."""
        source = _source(address)
        with self._lock:
            now = self.clock()
            own = self._failures.get(source, _Failures())
            closed_until = own.closed_until
            if source not in self._known:
                closed_until = max(closed_until, self._all.closed_until)
            if closed_until > now:
                return Answer(wait=closed_until - now)
            given = _digest(password)
            # all are compared, so that the time does not tell which role a guess came near
            matches = [role for role, digest in self._digests.items() if hmac.compare_digest(given, digest)]
            if not matches:
                self._failed(source, own, now)
                return Answer()
            self._failures.pop(source, None)
            if len(self._known) < self._MOST_ADDRESSES:
                self._known.add(source)
            self._logins = {token: login for token, login in self._logins.items() if login.until > now}
            token = secrets.token_urlsafe(32)
            self._logins[token] = _Login(role=matches[0], until=now + HOURS * 3600)
            return Answer(token=token)

    def _failed(self, source: str, own: _Failures, now: float) -> None:
        for failures, (first, most) in ((own, self._OWN), (self._all, self._ALL)):
            if now - failures.last > self._FORGET:
                failures.count = 0
            failures.add(now, first, most)
        self._failures[source] = own
        self._failures.move_to_end(source)
        if len(self._failures) > self._MOST_ADDRESSES:
            self._failures.popitem(last=False)
        _log.warning("a login of the dashboard failed, from %s: %d in a row", source, own.count)

    def role(self, token: str | None) -> str | None:
        """The role of who holds this token; None once it has expired or was ended."""
        login = self._logins.get(token or "")
        return login.role if login is not None and self.clock() < login.until else None

    def end(self, token: str) -> None:
        """Log out: the token is worth nothing any more, in any window."""
        self._logins.pop(token, None)

    def ticket(self, token: str) -> str:
        """What a browser gives once, within a minute, for the cookie of a login."""
        with self._lock:
            now = self.clock()
            self._tickets = {key: held for key, held in self._tickets.items() if held[1] > now}
            key = secrets.token_urlsafe(32)
            self._tickets[key] = (token, now + 60)
            return key

    def waits(self, ticket: str) -> bool:
        """Whether a ticket has not been redeemed yet."""
        return self.clock() < self._tickets.get(ticket, ("", 0.0))[1]

    def redeem(self, ticket: str) -> str | None:
        """The token that a ticket stands for, the first time."""
        with self._lock:
            token, until = self._tickets.pop(ticket, ("", 0.0))
            return token if self.clock() < until and self.role(token) else None


def _digest(password: str) -> bytes:
    """Of one length whatever the password's; the passwords themselves need not stay in memory."""
    return hashlib.sha256(password.encode(errors="surrogatepass")).digest()


def _source(address: str | None) -> str:
    """Whom a failure counts against: an address, or the network of 2^64 that one IPv6 host may use."""
    try:
        found = ipaddress.ip_address(address or "127.0.0.1")
    except ValueError:
        return str(address)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        return str(found.ipv4_mapped)
    if isinstance(found, ipaddress.IPv6Address) and not found.is_loopback:
        return str(ipaddress.ip_network((found.packed[:8] + bytes(8), 64)))
    return str(found)
