"""A Ray of this machine that a test file's runs share."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import pytest
import ray

__all__ = ["local_cluster"]


@contextlib.contextmanager
def local_cluster(cpus: int = 2) -> Iterator[str]:
    """Its address. It is found by what this process runs, and gone after the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # as ours has it: ranks at 15 starve on a busy machine
        context = ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
        )
    try:
        yield context.address_info["address"]
    finally:
        ray.shutdown()
        shutil.rmtree(context.address_info["session_dir"], ignore_errors=True)
