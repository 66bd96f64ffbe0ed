"""The connection of a run to a Ray cluster: one that stands, or a local one of its own."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Any

import ray
import ray.exceptions
from ray._private.authentication import authentication_token_setup as _tokens

from tuner.dispatch import packages
from tuner.dispatch.local_ray import LocalRay, quietly, unheard
from tuner.errors import BadInput, ClusterUnavailable
from tuner.runtime_env import sent_folder

__all__ = ["Connection", "first_line", "show_token"]

ANSWER = 5.0  # seconds for a cluster's port to answer


class Connection:
    """Opened by one run, and closed with it.

    Args:
        address: of a cluster; None: the Ray that this process is connected to, else
            ``$RAY_ADDRESS``, else a local one that is started and ended here.
        runtime_env: what is sent to every node; see :mod:`tuner.runtime_env`.

    Attributes:
        packages: what workers have been sent, as :func:`tuner.dispatch.packages.told` has it.
        sent: the folder of this machine of which every node has a copy; "" for none.
    """

    def __init__(self, address: str | None, runtime_env: Mapping[str, Any] | None = None) -> None:
        self.packages = self.sent = ""
        self._address = address
        self._wanted = dict(runtime_env or {})
        self._local: LocalRay | None = None
        self._is_ours = False

    def open(self, run: str) -> None:
        """Connect; the processes of a local Ray carry the run's mark.

        Raises:
            ClusterUnavailable: nothing answers, or a local Ray does not come up.
            BadInput: what is to be sent cannot be.
        """
        job = packages.job_environment()
        wanted = packages.runtime_env_of(self._wanted, job)
        try:
            if ray.is_initialized():
                _check_sent(wanted)
            else:
                self._connect(run, wanted)
        except ray.exceptions.RuntimeEnvSetupError as error:
            self.close()
            raise BadInput(f"the runtime environment cannot be sent: {first_line(error)}") from error
        self.sent = sent_folder(wanted) or packages.job_folder(job, os.getcwd())
        self.packages = packages.told(ray.get_runtime_context().runtime_env)

    def _connect(self, run: str, wanted: dict[str, Any]) -> None:
        address = self._address or os.environ.get("RAY_ADDRESS")
        if address in (None, "local"):
            self._local = LocalRay(run)
            self._local.start(wanted)
            return
        self._is_ours = True
        try:
            _knock(address)
            with unheard(), quietly():
                show_token(address)
                ray.init(
                    address=address,
                    runtime_env=dict(wanted) or None,  # Ray changes it
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
        except ray.exceptions.RuntimeEnvSetupError:
            raise
        except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
            self.close()
            raise ClusterUnavailable(
                f"no Ray cluster answers at {address!r} ({first_line(error)}); start one with "
                "'ray start --head', leave the address out for a local one, or set RAY_AUTH_MODE=token "
                "and RAY_AUTH_TOKEN if it asks for a token"
            ) from error

    @property
    def starts_ray(self) -> bool:
        """:meth:`open` is to start a local Ray, with nothing sent to its workers."""
        address = self._address or os.environ.get("RAY_ADDRESS")
        return address in (None, "local") and not ray.is_initialized() and not self._wanted

    @property
    def is_local(self) -> bool:
        """The cluster ends with this run."""
        return self._local is not None

    def line_host(self) -> str | None:
        """The address of this host that shells may call; None where all that passes is to be encrypted."""
        if self.is_local:
            return "127.0.0.1"
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return None
        return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]

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


def _check_sent(wanted: Mapping[str, Any]) -> None:
    """A connection that is there already cannot be given a runtime environment.

    Raises:
        BadInput: it has none.
    """
    has = ray.get_runtime_context().runtime_env
    missing = sorted(name for name in wanted if name != "excludes" and not has.get(name))
    if missing:
        raise BadInput(
            f"this process is connected to Ray already, and without {' and '.join(missing)}; give "
            "runtime_env to ray.init(...) too, or leave ray.init out and name the cluster with address=..."
        )


def first_line(error: Exception) -> str:
    """What happened; what Ray would have one do about it is said better by who knows how it was asked."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.partition(" Please ")[0].rstrip(".")


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
