"""``tuner doctor``: what this machine has, what is wrong with it, and what to do about it."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from tuner.cli.options import json_option, storage_option
from tuner.errors import TunerError

__all__ = ["Finding", "doctor", "sqlite_finding"]

_GIB = 2**30
_FIXED_SQLITE = (3, 51, 3)
_PACKAGES = ("optuna", "ray", "torch", "sqlalchemy", "alembic", "streamlit", "numpy", "rich", "click")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report. ``state`` is "ok", "warning" or "wrong"; ``fix`` says what to do."""

    name: str
    state: str
    detail: str
    fix: str = ""


@click.command(short_help="Check this machine, the database and Ray.")
@click.option("--ray/--no-ray", default=True, help="Start a local Ray, or reach the cluster.  [default: yes]")
@click.option(
    "--address", metavar="RAY", help="Ray cluster to reach.  [default: $RAY_ADDRESS, else a local one]"
)
@storage_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, ray: bool, address: str | None, storage: str | None, as_json: bool) -> None:
    """Check versions, database, Ray, GPUs and file systems; exit 1 if something is wrong.

    \b
    Examples:
      tuner doctor
      tuner doctor --no-ray --storage postgresql://ann@db/tuner
    """
    from tuner.cli.printing import print_json

    checks: list[Callable[[], Iterable[Finding]]] = [
        _python,
        _packages,
        lambda: [sqlite_finding(sqlite3.sqlite_version_info)],
        lambda: _database(storage),
        _gpus,
        _memory,
        _folders,
        _names,
    ]
    if ray:
        checks.append(lambda: _ray(address))
    found = []
    for check in checks:
        for finding in check():
            found.append(finding)
            if not as_json:
                _print(finding)
    wrong = sum(finding.state == "wrong" for finding in found)
    if as_json:
        print_json(found)
    else:
        warned = sum(finding.state == "warning" for finding in found)
        notes = f"; {warned} to look at" if warned else ""
        click.echo(f"{wrong} wrong{notes}" if wrong else f"nothing is wrong{notes}")
    if wrong:
        ctx.exit(1)


def _print(finding: Finding) -> None:
    colour = {"ok": "green", "warning": "yellow", "wrong": "red"}[finding.state]
    click.echo(f"{click.style(finding.state.ljust(8), fg=colour)} {finding.name}: {finding.detail}")
    if finding.fix:
        click.echo(f"         {finding.fix}")


def sqlite_finding(version: tuple[int, ...]) -> Finding:
    """SQLite's library: up to 3.51.2 a rare race on a WAL reset can corrupt a database."""
    text = ".".join(map(str, version))
    if version >= _FIXED_SQLITE:
        return Finding(name="SQLite", state="ok", detail=text)
    return Finding(
        name="SQLite",
        state="warning",
        detail=f"{text}, in which two processes that reset the WAL at once can, rarely, corrupt the database",
        fix="use a Python with SQLite 3.51.3 or newer, or PostgreSQL; keep copies of studies that matter",
    )


def _python() -> Iterable[Finding]:
    text = f"{platform.python_version()} at {sys.executable}"
    yield Finding(name="Python", state="ok", detail=text)
    if not sys.platform.startswith("linux"):
        yield Finding(
            name="system",
            state="warning",
            detail=f"{platform.system()}: Tuner is tested on Linux",
            fix="use Linux, or a container",
        )


def _packages() -> Iterable[Finding]:
    found, missing = [], []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    yield Finding(name="packages", state="ok", detail=", ".join(found))
    if missing:
        names = " ".join(missing)
        yield Finding(
            name="packages", state="wrong", detail=f"missing: {names}", fix=f"run 'pip install {names}'"
        )


def _database(storage: str | None) -> Iterable[Finding]:
    from storage import mask_url
    from storage.database import normalise_url
    from tuner import store

    text = storage or store.default_url()
    shown = mask_url(text)
    try:
        with store.errors():
            url = normalise_url(text)
    except TunerError as error:
        yield Finding(
            name="database", state="wrong", detail=str(error), fix="set --storage or $TUNER_STORAGE"
        )
        return
    if url.get_backend_name() == "postgresql" and importlib.util.find_spec("psycopg") is None:
        yield Finding(
            name="database",
            state="wrong",
            detail=f"{shown} needs the package psycopg",
            fix="run \"pip install 'tuner[postgres]'\"",
        )
        return
    file = Path(str(url.database)).absolute()
    if url.get_backend_name() == "sqlite" and not file.exists() and file.parent.is_dir():
        yield Finding(
            name="database", state="ok", detail=f"{shown} is not there yet; the first run creates it"
        )
        return
    yield from _opened(storage, shown)


def _opened(storage: str | None, shown: str) -> Iterable[Finding]:
    """The database itself, and drivers in it that were killed."""
    from storage import owner, reads
    from tuner.cli.source import driver_of, reading

    try:
        with reading(storage) as database:
            rows = [] if reads.is_empty(database.engine) else reads.studies(database.engine)
    except TunerError as error:
        yield Finding(name="database", state="wrong", detail=str(error))
        return
    yield Finding(name="database", state="ok", detail=f"{shown}: {len(rows)} studies")
    for row in rows:
        if driver_of(row) == "gone":
            yield Finding(
                name=f"study {row.name}",
                state="warning",
                detail=f"its driver, {owner.shown(row.owner)}, ended without letting go",
                fix=f"run 'tuner resume {row.name}'; nothing is lost",
            )


def _gpus() -> Iterable[Finding]:
    devices = glob.glob("/dev/nvidia[0-9]*")
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = ""
    if not devices:
        yield Finding(name="GPUs", state="ok", detail=f"none here; torch {torch or 'is missing'}")
        return
    listed = _nvidia_smi()
    if not listed:
        yield Finding(
            name="GPUs",
            state="wrong",
            detail=f"{len(devices)} devices, but nvidia-smi does not answer",
            fix="check the NVIDIA driver",
        )
    elif "+cpu" in torch:
        yield Finding(
            name="GPUs",
            state="wrong",
            detail=f"{'; '.join(listed)}, but torch {torch} is the build without CUDA",
            fix="install torch's CUDA build of the same version (see pytorch.org)",
        )
    else:
        yield Finding(name="GPUs", state="ok", detail=f"{'; '.join(listed)}; torch {torch}")


def _nvidia_smi() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _memory() -> Iterable[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{os.cpu_count()} CPUs, {memory.total / _GIB:.1f} GiB, {memory.available / _GIB:.1f} GiB free"
    low = memory.available < _GIB
    fix = "close something, or ask for fewer trials with --max-concurrent" if low else ""
    yield Finding(name="machine", state="warning" if low else "ok", detail=text, fix=fix)
    shared = Path("/dev/shm")  # noqa: S108 - only its size is looked at
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        small = size < _GIB
        yield Finding(
            name="shared memory",
            state="warning" if small else "ok",
            detail=f"{size / _GIB:.2f} GiB at {shared}"
            + (", little for Ray and DataLoader" if small else ""),
            fix="in a container give --shm-size=4g" if small else "",
        )


def _folders() -> Iterable[Finding]:
    for name, folder in (("current folder", Path.cwd()), ("temporary folder", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK):
            yield Finding(
                name=name, state="wrong", detail=f"{folder} cannot be written to", fix="use another"
            )
        elif free < 2 * _GIB:
            detail = f"{folder} has {free / _GIB:.1f} GiB left"
            yield Finding(name=name, state="warning", detail=detail, fix="Ray and checkpoints need room")
        else:
            yield Finding(name=name, state="ok", detail=f"{folder}, {free / _GIB:.0f} GiB free")


def _names() -> Iterable[Finding]:
    """Files of the user's that hide our packages, or would on a worker."""
    from tuner.shadow import check_folder, check_path

    try:
        check_path()
        check_folder(Path.cwd())
    except TunerError as error:
        yield Finding(name="names", state="wrong", detail=str(error))


def _ray(address: str | None) -> Iterable[Finding]:
    from tuner.dispatch.ray_cluster import RayExecutor
    from tuner.resources import Resources

    executor = RayExecutor(address)
    where = address or os.environ.get("RAY_ADDRESS") or "a local one"
    try:
        found = executor.open("doctor", 0, [Resources(cpus=0, gpus=0)], lambda envelope: None)
    except TunerError as error:
        yield Finding(name="Ray", state="wrong", detail=str(error))
        return
    finally:
        executor.close()
    yield Finding(name="Ray", state="ok", detail=f"{where}: {found.description}")
