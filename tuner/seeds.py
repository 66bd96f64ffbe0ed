"""Seeds that depend on names and numbers only, the same on every machine and Python."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys

from tuner.arrival import on_import

__all__ = ["derived_seed", "seed_everything", "trial_seed"]


def derived_seed(study_seed: int, *labels: str | int) -> int:
    """A 32-bit seed for one use of randomness in a study.

    Args:
        study_seed: the study's own seed, any whole number.
        labels: what the seed is for, such as ``"sampler", 17``. Other labels give another seed.

    Example:
        >>> derived_seed(1, "sampler", 0) == derived_seed(1, "sampler", 0)
        True
    """
    text = json.dumps([study_seed, *labels])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def trial_seed(study_seed: int, number: int) -> int:
    """``trial.seed``: the same for every attempt and every rank of trial ``number``."""
    return derived_seed(study_seed, "trial", number)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators.

    NumPy and torch are seeded where they are already imported, and torch where it is not, when it is: an
    objective in plain Python must not pay for an import of it.

    Args:
        seed: 0 to 2**32 - 1.
    """
    random.seed(seed)
    if "numpy" in sys.modules:
        import numpy

        numpy.random.seed(seed)
    if "torch" in sys.modules:
        _seed_torch(seed)
    else:
        on_import("torch", "seed", lambda: _seed_torch(seed))


def _seed_torch(seed: int) -> None:
    import torch

    if _may_have_devices():
        torch.manual_seed(seed)
    else:  # the other also notes a stack for each kind of device that may come: a millisecond
        torch.default_generator.manual_seed(seed)


def _may_have_devices() -> bool:
    import torch

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    cuda = torch.backends.cuda.is_built() and not hidden  # type: ignore[no-untyped-call]
    other = torch._C._get_privateuse1_backend_name() != "privateuseone"  # a device that a package brings
    return cuda or torch.xpu._is_compiled() or torch.backends.mps.is_built() or other
