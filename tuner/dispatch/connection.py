"""The connection of a run to a Ray cluster: one that stands, or a local one of its own."""

from __future__ import annotations

import logging
import os
import socket

import ray
import ray.exceptions
from ray._private.authentication import authentication_token_setup as _tokens

from tuner.dispatch.local_ray import LocalRay, quietly
from tuner.errors import ClusterUnavailable

__all__ = ["Connection", "show_token"]

ANSWER = 5.0  # seconds for a cluster's port to answer


class Connection:
    """Opened by one run, and closed with it.

    Args:
        address: of a cluster; None: the Ray that this process is connected to, else
            ``$RAY_ADDRESS``, else a local one that is started and ended here.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._local: LocalRay | None = None
        self._is_ours = False

    def open(self, run: str) -> None:
        """Connect; the processes of a local Ray carry the run's mark.

        Raises:
            ClusterUnavailable: nothing answers, or a local Ray does not come up.
        """
        if ray.is_initialized():
            return
        address = self._address or os.environ.get("RAY_ADDRESS")
        if address in (None, "local"):
            self._local = LocalRay(run)
            self._local.start()
            return
        try:
            _knock(address)
            with quietly():
                show_token(address)
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ClusterUnavailable(
                f"no Ray cluster answers at {address!r} ({line}); start one with 'ray start --head', "
                "leave the address out for a local one, or set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
                "if it asks for a token"
            ) from error
        self._is_ours = True

    @property
    def is_local(self) -> bool:
        """The cluster ends with this run."""
        return self._local is not None

    @property
    def is_dead(self) -> bool:
        """The local Ray was killed."""
        return self._local is not None and not self._local.is_alive

    def close(self) -> None:
        """Let go of the cluster, or end it where it is local. Can be called twice."""
        if self._is_ours:
            self._is_ours = False
            with quietly():
                ray.shutdown()
        if self._local is not None:
            local, self._local = self._local, None
            local.stop()


def show_token(address: str) -> None:
    """To a cluster of this host, the token that Ray has made here: ``ray start`` asks for it once there
    is one, and ``ray.init`` does not show it by itself to an address that was named.
    """
    host = address.removeprefix("ray://").rpartition(":")[0]
    try:
        socket.create_server((host, 0)).close()
    except OSError:
        return  # another host's: who sends a secret there has to say so
    level = _tokens.logger.level
    _tokens.logger.setLevel(logging.ERROR)
    try:
        _tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    finally:
        _tokens.logger.setLevel(level)


def _knock(address: str) -> None:
    """Fail soon where nothing listens: Ray itself would try for long.

    Raises:
        OSError: nobody answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
