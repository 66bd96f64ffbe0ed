"""What was written for another tuner, run as it is: its trainables as objectives, its spaces as Optuna's.

::

    objective = tuner.compat.ray_tune(train, {"lr": tune.loguniform(1e-4, 1e-1)}, metric="loss", mode="min")

The other tuner need not be installed for Tuner; whoever has code for it has it, and it is imported
when its name below is called.
"""

from __future__ import annotations

from tuner.compat.trainable import RayTrainable, ray_tune

__all__ = ["RayTrainable", "ray_tune"]
