"""A Ray of our own on this machine, of which nothing stays behind."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray._private import node, parameter, services, worker

from tuner import credentials, shared_folder
from tuner.dispatch import working_folder
from tuner.dispatch.ray_shell import plain
from tuner.dispatch.reaper import Reaper
from tuner.errors import ClusterUnavailable
from tuner.processes import MARK, is_gone, marked, sweep
from tuner.signals import deferred

__all__ = ["LocalRay", "quietly", "unheard"]

_SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # hide the GPUs from actors that asked for none
    "RAY_memory_monitor_refresh_ms": "0",  # it may end innocent actors with the hog
    "RAY_worker_niceness": "0",  # else 15: a rank would lose to whatever else runs here
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_prestart_worker_first_driver": "0",  # one for each core, which the shells that start would wait for
}


class LocalRay:
    """Started for one run, and ended with it; a reaper ends it when this process is killed.

    Args:
        run: mark that all its processes carry in their environment.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._reaper = Reaper(run)
        base = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 (Ray's choice)
        self._session = f"{base}/ray/session_*_{os.getpid()}"
        self._pids: list[int] = []
        self._reaper.remove(self._session)  # as a pattern: we may be killed before Ray tells its name

    def start(self, runtime_env: Mapping[str, Any] | None = None) -> None:
        """Start it and connect.

        Args:
            runtime_env: of its workers.

        Raises:
            RuntimeEnvSetupError: Ray's own, of what is to be sent.
            ClusterUnavailable: it does not come up.
        """
        try:
            environment = _environment({**_SETTINGS, MARK: self._run})
            with environment, _own_session(), _lean(), plain(), unheard(), quietly():
                context: Any = ray.init(
                    address="local",
                    include_dashboard=False,
                    runtime_env=dict(runtime_env) if runtime_env else None,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
        except SystemExit as error:  # what Ray makes of a SIGTERM from here on
            raise KeyboardInterrupt("SIGTERM while Ray started") from error
        except ray.exceptions.RuntimeEnvSetupError:
            raise
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ClusterUnavailable(
                f"a local Ray could not be started: {line}; 'tuner doctor' looks for the cause"
            ) from error
        self._session = str(context.address_info["session_dir"])
        self._reaper.remove(self._session)
        self._pids = [pid for pid in marked(self._run) if _is_server(pid)]

    @property
    def is_alive(self) -> bool:
        """Whether its servers run. Ray itself takes a minute to notice, and then ends this process."""
        return not any(is_gone(pid) for pid in self._pids)

    def stop(self) -> None:
        """End every process of it, and remove its files."""
        with quietly():
            ray.shutdown()
        sweep(self._run, folders=[self._session], spare=[self._reaper.pid])
        working_folder.sweep(self._run)
        shared_folder.sweep()  # of shells that had no time for it
        if "*" in self._session:  # its start was interrupted: who looks for it is the reaper
            self._reaper.leave()
            return
        shutil.rmtree(self._session, ignore_errors=True)
        self._reaper.dismiss()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of Ray's own start and end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """What is connected meanwhile prints no word of Ray's servers, such as that a worker died: they would
    stand in our standard output, which may be JSON, beside our own word for it. ``log_to_driver=False``
    stops only what workers print.
    """
    listen = getattr(worker, "listen_error_messages", None)
    if listen is None:
        yield  # another Ray than was tried: as it likes
        return
    worker.listen_error_messages = lambda *arguments: None
    try:
        yield
    finally:
        worker.listen_error_messages = listen


@contextlib.contextmanager
def _own_session() -> Iterator[None]:
    """What Ray starts is in a session of its own: a signal to our process group, as ``timeout`` and
    service managers send it, is for us. Ray has no option for it. And it gets no password: Ray's workers
    inherit its environment.
    """
    popen = services.ConsolePopen

    class Popen(popen):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            with deferred():
                environment = credentials.without(options.pop("env", None) or os.environ)
                super().__init__(*arguments, **options, env=environment, start_new_session=True)

    services.ConsolePopen = Popen  # type: ignore[misc]
    try:
        yield
    finally:
        services.ConsolePopen = popen  # type: ignore[misc]


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    """Without three processes that have nothing to do for one node and one driver: what scales a cluster,
    what takes workers' output to a driver that asked for none, and the server of a dashboard that is off.
    They cost Ray's start a second and more. Ray can do without, and has no option of ``ray.init`` for it.
    """
    parameters, serve = parameter.RayParams, getattr(node.Node, "start_api_server", None)
    known = inspect.signature(parameters.__init__).parameters
    if serve is None or not {"no_monitor", "include_log_monitor"} <= known.keys():
        yield  # another Ray than was tried: as it likes
        return

    class Parameters(parameters):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "no_monitor": True, "include_log_monitor": False})

    parameter.RayParams = Parameters  # type: ignore[misc]
    node.Node.start_api_server = lambda self, **options: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        parameter.RayParams, node.Node.start_api_server = parameters, serve  # type: ignore[misc, method-assign]


def _is_server(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() in ("gcs_server", "raylet")
    return False


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
