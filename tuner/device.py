"""This rank's devices, and whether they can be used: looked at before each attempt.

A rank sees only the GPUs that Ray gave to it, as ``cuda:0``, ``cuda:1``, ... Each is tried with a small
computation whose result is known, and one that the rank has for itself must be free: processes of an
attempt before may take a moment to give their memory back. One that fails is set aside for the study,
and the trial is tried again elsewhere.

``TUNER_PROBE="FILE.py:FUNCTION"`` in the ranks' environment (``env=("TUNER_PROBE",)``) looks in place of
this: it is called with each physical id, and returns what is wrong, or "".
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tuner import objective as objectives
from tuner.failures import is_out_of_memory

if TYPE_CHECKING:
    import torch

__all__ = ["Cuda", "Fault", "Look", "device_of", "look_of", "most_reserved", "probe", "within"]

FREE = 0.9
"""Part of a device's memory that is free before a rank has it for itself."""

PATIENCE = 15.0  # seconds for the processes before to give back a device's memory
HUNG = 60.0  # seconds of a probe after which its device has failed


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A device that cannot be used: its index in this rank, and why."""

    index: int
    why: str


class Look(Protocol):
    """What is asked of a device by its index in this rank. Errors speak against it."""

    def compute(self, index: int) -> str:
        """Compute something; what is wrong with the result, or ""."""

    def memory(self, index: int) -> tuple[int, int]:
        """Free and total bytes."""


class Cuda:
    """The devices as PyTorch sees them."""

    def compute(self, index: int) -> str:
        import torch

        ones = torch.ones(256, 256, device=torch.device("cuda", index))
        found = float((ones @ ones).sum().item())
        return "" if found == 256.0**3 else f"it computes {found} where {256.0**3} is right"

    def memory(self, index: int) -> tuple[int, int]:
        import torch

        return torch.cuda.mem_get_info(index)


class Own:
    """A function of the user's, with the physical ids."""

    def __init__(self, function: Callable[[str], Any], devices: Sequence[str]) -> None:
        self._function = function
        self._devices = devices

    def compute(self, index: int) -> str:
        return str(self._function(self._devices[index]) or "")

    def memory(self, index: int) -> tuple[int, int]:
        return 1, 1


def device_of(gpus: float | None) -> torch.device:
    """The device of a rank with so many GPUs: the first that Ray shows it, else the CPU."""
    import torch

    return torch.device("cuda", 0) if gpus and torch.cuda.is_available() else torch.device("cpu")


def most_reserved() -> int:
    """Bytes of GPU memory that PyTorch has reserved in this process at most; 0 where it has none."""
    if "torch" not in sys.modules:
        return 0
    import torch

    # of a device that nothing has used it is 0, and asking does not start CUDA
    return sum(torch.cuda.max_memory_reserved(index) for index in range(torch.cuda.device_count()))


def look_of(devices: Sequence[str]) -> Look | None:
    """How the devices of this rank are looked at; None where there are none, or only pretended ones.

    Args:
        devices: physical ids.
    """
    target = os.environ.get("TUNER_PROBE")
    if target:
        return Own(objectives.load(objectives.refer(target)), devices)
    import torch

    return Cuda() if devices and torch.cuda.is_available() else None


def probe(
    look: Look,
    count: int,
    *,
    alone: bool,
    patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Fault | None:
    """The first of the rank's devices that cannot be used; None: all can.

    Args:
        count: how many devices it has.
        alone: it shares them with nobody, so that their memory must be free.
        patience: seconds that the memory of each may take to become free.
    """
    for index in range(count):
        deadline = None
        while True:
            why, passes = _wrong(look, index, alone)
            deadline = clock() + patience if deadline is None else deadline
            if not passes or clock() >= deadline:
                break
            pause(0.1)
        if why:
            return Fault(index=index, why=why)
    return None


def _wrong(look: Look, index: int, alone: bool) -> tuple[str, bool]:
    """What is wrong with a device, or "", and whether that may pass."""
    try:
        why = look.compute(index)
        if why or not alone:
            return why, False
        free, total = look.memory(index)
    except Exception as error:  # whatever a driver or a library makes of it
        if not is_out_of_memory(error):
            return (str(error).strip().splitlines() or [type(error).__name__])[0], False
        # The device works. Where it is shared its memory is the neighbours' matter, and the objective's own.
        return ("its memory is held by other processes", True) if alone else ("", False)
    if free >= FREE * total:
        return "", False
    return f"{(total - free) / 2**30:.1f} of its {total / 2**30:.1f} GiB are held by other processes", True


def within(seconds: float, give_up: Callable[[], None]) -> AbstractContextManager[None]:
    """Call ``give_up`` from a thread if the block takes longer: a driver that hangs is not interrupted."""

    @contextmanager
    def watched() -> Any:
        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    return watched()
