"""What a shell gives its ranks to stand in, and how shells find out that they share a host."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from tuner import credentials, shared_folder
from tuner.processes import MARK

__all__ = ["SHELL_MARK", "environment", "loopback", "rename"]

SHELL_MARK = "TUNER_SHELL"
"""In the environment of a shell's processes, beside the run's mark."""


def loopback() -> str:
    """A name of this process's loopback interface: of its network namespace, on this boot of its host."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/net')}"
    except OSError:
        return socket.gethostname()


def environment(run: str, mark: str, cpus: float, hide_gpus: bool, shared: str) -> Mapping[str, str]:
    """The variables of a zygote and its ranks; thread counts go by the rank's cores.

    Args:
        shared: folder of the data that the node's ranks share.
    """
    threads = str(max(1, int(cpus)))
    found = credentials.without(os.environ)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        found[name] = os.environ.get(f"TUNER_{name}", threads)
    found.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    found.setdefault("PYTHONUNBUFFERED", "1")
    found[MARK] = run
    found[SHELL_MARK] = mark
    found[shared_folder.FOLDER] = shared
    home = str(Path(__file__).parents[2])  # where this very Tuner is imported from
    if home.endswith(("site-packages", "dist-packages")):
        home = ""  # Python finds it, and what a runtime environment installs comes before it
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
    if hide_gpus:
        found["CUDA_VISIBLE_DEVICES"] = ""
    return found


def rename(name: str, old: str, new: str) -> None:
    """Change a mark of this process in place, where the kernel shows what its environment began with.

    Args:
        old, new: its values, of one length.

    Raises:
        OSError: it is not there.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])  # env_start and env_end; see proc(5)
    begins = b"\0" + ctypes.string_at(start, end - start)
    at = begins.find(f"\0{name}={old}\0".encode())
    if at < 0 or len(old) != len(new):
        raise OSError(f"{name}={old} is not in the environment that this process began with")
    value = new.encode()
    ctypes.memmove(start + at + len(name) + 1, value, len(value))
