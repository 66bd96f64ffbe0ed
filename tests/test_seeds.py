"""Seeds depend on names and numbers only."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy

from tuner.seeds import derived_seed, seed_everything, trial_seed


def test_seeds_are_the_same_in_every_version() -> None:
    assert trial_seed(1, 0) == derived_seed(1, "trial", 0) == 3665450674


def test_seeds_differ_by_study_number_and_use() -> None:
    seeds = {trial_seed(study, number) for study in range(10) for number in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derived_seed(1, "sampler", 1) != derived_seed(1, "pruner", 1)


def test_generators_repeat_after_seeding() -> None:
    import torch

    drawn = []
    for _ in range(2):
        seed_everything(2**32 - 1)
        drawn.append((random.random(), numpy.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_the_inline_executor_and_seeding_leave_torch_alone() -> None:
    code = (
        "import sys; import tuner.dispatch.inline, tuner.seeds; tuner.seeds.seed_everything(1);"
        "sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_torch_that_comes_later_is_seeded_by_the_last_seed_then() -> None:
    code = (
        "import tuner.seeds as seeds; seeds.seed_everything(1); seeds.seed_everything(2); import torch;"
        "late = torch.rand(1).item(); seeds.seed_everything(2); assert torch.rand(1).item() == late;"
        "assert torch.__spec__.loader is torch.__loader__"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
