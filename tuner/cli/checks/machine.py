"""This machine: Python, packages, GPUs, memory, folders, names."""

from __future__ import annotations

import glob
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tuner.cli.checks.finding import GIB, Finding
from tuner.errors import TunerError

__all__ = ["PACKAGES", "folders", "gpus", "memory", "names", "packages", "python"]

PACKAGES = ("optuna", "ray", "torch", "sqlalchemy", "alembic", "streamlit", "numpy", "rich", "click")
"""Packages whose versions the report names."""


def python() -> Iterable[Finding]:
    """The interpreter and the system."""
    text = f"{platform.python_version()} at {sys.executable}"
    yield Finding(name="Python", state="ok", detail=text)
    if not sys.platform.startswith("linux"):
        yield Finding(
            name="system",
            state="warning",
            detail=f"{platform.system()}: Tuner is tested on Linux",
            fix="use Linux, or a container",
        )


def packages() -> Iterable[Finding]:
    """Versions, those that Tuner does not work with, and what is missing."""
    found, missing = [], []
    for package in PACKAGES:
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
    for name, version, wanted in _misfits():
        yield Finding(
            name="packages",
            state="wrong",
            detail=f"{name} {version} is not what Tuner needs: {wanted}",
            fix=f"run \"pip install '{wanted}'\"",
        )


def _misfits() -> Iterable[tuple[str, str, str]]:
    """Name and version of each package that is not what Tuner requires, and what that is."""
    from packaging.requirements import Requirement

    try:
        wanted = importlib.metadata.requires("tuner") or []
    except importlib.metadata.PackageNotFoundError:  # run from its folder
        return
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield requirement.name, version, str(requirement)


def gpus() -> Iterable[Finding]:
    """The GPUs of this machine, and whether torch can use them."""
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
    elif why := _cuda_fails():
        yield Finding(
            name="GPUs",
            state="wrong",
            detail=f"{'; '.join(listed)}, but torch {torch} cannot use them: {why}",
            fix="update the NVIDIA driver, or install a build of torch for an older CUDA",
        )
    else:
        yield Finding(name="GPUs", state="ok", detail=f"{'; '.join(listed)}; torch {torch}")


def _cuda_fails() -> str:
    """Why torch cannot use the GPUs, or ""; asked of another process, which takes nothing of them along."""
    program = "import torch; torch.zeros(1).cuda()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return "no answer within 120 s"
    said = done.stderr.strip().splitlines()
    return (said[-1] if said else f"exit code {done.returncode}") if done.returncode else ""


def _nvidia_smi() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def memory() -> Iterable[Finding]:
    """Cores, memory, and the shared memory that Ray and DataLoader use."""
    import psutil

    memory = psutil.virtual_memory()
    text = f"{os.cpu_count()} CPUs, {memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB free"
    low = memory.available < GIB
    fix = "close something, or ask for fewer trials with --max-concurrent" if low else ""
    yield Finding(name="machine", state="warning" if low else "ok", detail=text, fix=fix)
    shared = Path("/dev/shm")  # noqa: S108 - only its size is looked at
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        small = size < GIB
        yield Finding(
            name="shared memory",
            state="warning" if small else "ok",
            detail=f"{size / GIB:.2f} GiB at {shared}" + (", little for Ray and DataLoader" if small else ""),
            fix="in a container give --shm-size=4g" if small else "",
        )


def folders() -> Iterable[Finding]:
    """The folders that a run writes to: room, rights, and what kind of file system they are on."""
    from storage.sqlite_file import file_system

    for name, folder in (("current folder", Path.cwd()), ("temporary folder", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        kind = file_system(folder) or "unknown"
        if not os.access(folder, os.W_OK):
            yield Finding(
                name=name, state="wrong", detail=f"{folder} cannot be written to", fix="use another"
            )
        elif free < 2 * GIB:
            detail = f"{folder} ({kind}) has {free / GIB:.1f} GiB left"
            yield Finding(name=name, state="warning", detail=detail, fix="Ray and checkpoints need room")
        else:
            yield Finding(name=name, state="ok", detail=f"{folder} ({kind}), {free / GIB:.0f} GiB free")


def names() -> Iterable[Finding]:
    """Files of the user's that hide our packages, or would on a worker."""
    from tuner.shadow import check_folder, check_path

    try:
        check_path()
        check_folder(Path.cwd())
    except TunerError as error:
        yield Finding(name="names", state="wrong", detail=str(error))
