"""Ready objectives: real trainings and benchmark functions, each an example that reads top to bottom.

- ``objectives.command(...)``: an external program, in any language.
- ``objectives.quadratic:objective``: a distributed gradient descent in milliseconds.
- ``objectives.digits:objective``: a distributed training on real data, pruned and resumable.
- ``objectives.model_parallel:objective``: one network split over the ranks, trained as a pipeline.
- ``objectives.functions:branin`` and others: benchmark functions with known optima.

``python -m objectives.demo`` tunes the second one from the first trial to a picture. In ``programs/`` are
programs without a word of Tuner, for MPI, torchrun, Spark and Keras, each with the command that tunes it.
"""

from objectives.external.objective import Command, command

__all__ = ["Command", "command"]
