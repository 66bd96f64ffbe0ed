"""An exception as an outcome: one line, the type, and the traceback from the user's first frame on."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from types import TracebackType

from tuner.errors import BadMetric, CheckpointNotSaved, ProgramFailed
from tuner.outcome import Outcome, Reason

__all__ = ["is_out_of_memory", "raised", "stopped", "storable"]

_MAX_MESSAGE = 1_000
_MAX_TRACEBACK = 64 * 1024
_HARDWARE = (
    "uncorrectable ecc error",
    "fallen off the bus",
    "uncorrectable nvlink error",
    "hardware stack error",
)
_FULL = ("cuda error: out of memory", "cuda driver error: out of memory", "status_alloc_failed")
_OURS = str(Path(__file__).parent)


def raised(error: BaseException, reason: Reason | None = None, message: str | None = None) -> Outcome:
    """The outcome of an attempt that ended with this exception.

    Args:
        reason: by default EXCEPTION, or what it says: memory ran out, no checkpoint was saved, a GPU broke,
            an external program was killed.
        message: instead of the exception's type and the first line of its text.
    """
    if reason is None:
        reason = Reason.OOM if is_out_of_memory(error) else Reason.EXCEPTION
        if isinstance(error, CheckpointNotSaved):
            reason = Reason.CHECKPOINT_NOT_SAVED
        elif isinstance(error, ProgramFailed):
            reason = Reason(error.reason)
        elif isinstance(error, BadMetric):
            reason = Reason.BAD_VALUE
        elif _is_hardware(error):
            reason = Reason.DEVICE_FAILED
    return Outcome(
        reason=reason,
        message=_message(_advised(_line(error)) if message is None else message),
        traceback=_tail(error.tail) if isinstance(error, ProgramFailed) else _own_traceback(error),
        exception=_type_name(error),
    )


def stopped(reason: Reason, text: str) -> Outcome:
    """An end without an error, in the objective's own words."""
    return Outcome(reason=reason, message=_message(text))


def _message(text: str) -> str:
    """Its beginning says the most."""
    text = storable(text)
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."


def storable(text: str) -> str:
    """What every database can hold: no NUL, no half characters."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _line(error: BaseException) -> str:
    try:
        text = str(error).strip().splitlines()
    except Exception:  # an exception class of the user's whose __str__ fails
        text = []
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _advised(line: str) -> str:
    """With what to do about PyTorch's own words, which know of no trial."""
    if "process group has not been initialized" not in line:
        return line
    way = "give --ranks 2, or use tuner.torch.prepare, which takes one rank too"
    return f"{line.rstrip('.')}; one rank has none: {way}"


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _own_traceback(error: BaseException) -> str:
    """The traceback from the objective's first frame on, without ours above it."""
    frame = error.__traceback__
    while frame is not None and _is_ours(frame):
        frame = frame.tb_next
    return _tail("".join(traceback.format_exception(type(error), error, frame)))


def _tail(text: str) -> str:
    """Its end says where it was raised."""
    text = storable(text)
    return text if len(text) <= _MAX_TRACEBACK else f"...{text[-_MAX_TRACEBACK:]}"


def _is_ours(frame: TracebackType) -> bool:
    file = frame.tb_frame.f_code.co_filename
    return os.path.dirname(file) == _OURS or "importlib" in file


def _is_hardware(error: BaseException) -> bool:
    """Whether CUDA says that the device itself is at fault, which is not the objective's doing."""
    text = _line(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _HARDWARE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: the host's, or a GPU's, which CUDA and its libraries put in many ways."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = _line(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _FULL)
