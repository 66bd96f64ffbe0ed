r"""MPI: a matrix product whose rows are dealt out to the ranks, and its time.

What it teaches: an MPI program is tuned as it is. Its block size and its number of ranks are parameters;
rank 0 prints what a pattern finds. A rank that dies makes ``mpirun`` end, so that the trial is tried again as
a whole. ``--cpus`` reserves what all ranks need::

    tuner run --study matmul --trials 20 --cpus 2 --metrics 'regex:seconds (\S+)' \
        --param 'ranks=1|2' --param 'block=intlog(8,256)' --command 'mpirun --oversubscribe \
        -n {ranks} python -m mpi4py objectives/programs/matmul_mpi.py {block}'

It needs ``pip install 'tuner[mpi]'``, which brings Open MPI and its ``mpirun``; ``python -m mpi4py`` lets an
error of one rank end them all. Open MPI runs as root only with ``OMPI_ALLOW_RUN_AS_ROOT=1`` and
``OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1`` (``--env 'OMPI_*'`` hands them on).
"""

from __future__ import annotations

import sys
import time

import numpy as np
from mpi4py import MPI

SIZE = 256


def main(block: int) -> None:
    """Multiply A and B in blocks, three times; rank 0 checks the product and prints the best time."""
    world = MPI.COMM_WORLD
    rank, ranks = world.Get_rank(), world.Get_size()
    generator = np.random.default_rng(0)  # the same on all ranks
    a, b = generator.random((SIZE, SIZE)), generator.random((SIZE, SIZE))
    mine = np.array_split(np.arange(SIZE), ranks)[rank]

    times = []
    for _ in range(3):
        world.Barrier()
        began = time.perf_counter()
        parts = world.gather(multiply(a[mine], b, block), root=0)
        times.append(time.perf_counter() - began)

    if rank == 0:
        product = np.concatenate(parts or [])
        error = float(np.abs(product - a @ b).max())
        if error > 1e-9 * SIZE:
            raise SystemExit(f"the product is wrong by {error}")
        print(f"{ranks} ranks, block {block}: error {error:.1e}, seconds {min(times):.6f}", flush=True)


def multiply(a: np.ndarray, b: np.ndarray, block: int) -> np.ndarray:
    """The product of (rows, SIZE) and (SIZE, SIZE), summed over blocks of ``block`` columns of ``a``."""
    product = np.zeros((len(a), b.shape[1]))
    for start in range(0, a.shape[1], block):
        product += a[:, start : start + block] @ b[start : start + block]
    return product


if __name__ == "__main__":
    main(int(sys.argv[1]))
