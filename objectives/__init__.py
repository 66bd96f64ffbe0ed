"""Ready objectives: real trainings and benchmark functions, each an example that reads top to bottom.

- ``objectives.quadratic:objective``: a distributed gradient descent in milliseconds.
- ``objectives.digits:objective``: a distributed training on real data, pruned and resumable.
- ``objectives.model_parallel:objective``: one network split over the ranks, trained as a pipeline.
- ``objectives.functions:branin`` and others: benchmark functions with known optima.

``python -m objectives.demo`` tunes the second one from the first trial to a picture.
"""
