"""This machine's GPUs, for the tests that need some."""

from __future__ import annotations

import functools
import subprocess

import pytest
import torch

__all__ = ["count", "needs", "used"]


@functools.cache
def count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def needs(gpus: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(count() < gpus, reason=f"needs {gpus} CUDA device(s), there are {count()}")


def used() -> int:
    """MiB of the first device that are taken, by whomever."""
    asked = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
