"""What a trial may switch in torch for the whole process, as it was before, and put back."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["Switches", "device_memory"]


class Switches:
    """Those of a process that has imported torch, as they are when this is made."""

    def __init__(self) -> None:
        import torch

        self._values = [read() for read, _ in _switches()]
        hooks = [one for name, one in vars(torch.nn.modules.module).items() if name.startswith("_global_")]
        self._hooks = [(one, one.copy()) for one in hooks if isinstance(one, dict)]

    def restore(self) -> None:
        """Put them back, and leave the process group, CUDA's caches and the modes that have no name here."""
        import torch

        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
        torch.autograd.set_detect_anomaly(False)
        torch.set_flush_denormal(False)
        for (read, write), value in zip(_switches(), self._values, strict=True):
            now = None
            with contextlib.suppress(RuntimeError):  # torch does not read what older and newer calls have set
                now = read()
            if now != value:
                write(value)
        for hooks, before in self._hooks:
            if hooks != before:
                hooks.clear()
                hooks.update(before)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            gc.collect()  # tensors in cycles hold their memory
            torch.cuda.synchronize()
            torch._C._cuda_clearCublasWorkspaces()  # a product of matrices leaves one, which is memory in use
            torch.cuda.empty_cache()
            torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]
            torch.cuda.reset_peak_memory_stats()


def device_memory() -> int:
    """Bytes of CUDA memory that tensors of this process hold."""
    if "torch" not in sys.modules:
        return 0
    import torch

    return torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]


def _switches() -> list[tuple[Callable[[], Any], Callable[[Any], object]]]:
    """What a trial may switch for the whole process: how each is read, and how it is set."""
    import torch

    matmul, cudnn, cuda = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.cuda
    printing = vars(torch._tensor_str.PRINT_OPTS)  # torch.set_printoptions sets them, and nothing tells them

    def attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], object]]:
        return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)

    def autocast(kind: str) -> tuple[Callable[[], Any], Callable[[Any], object]]:
        return lambda: torch.is_autocast_enabled(kind), lambda value: torch.set_autocast_enabled(kind, value)

    return [
        (torch.get_default_dtype, torch.set_default_dtype),
        (lambda: {**printing}, printing.update),
        (  # to set it imports a compiler: 1.7 s
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda both: torch.use_deterministic_algorithms(both[0], warn_only=both[1]),
        ),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.multiprocessing.get_sharing_strategy, torch.multiprocessing.set_sharing_strategy),
        (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
        (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
        (cuda.math_sdp_enabled, cuda.enable_math_sdp),
        (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
        (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
        autocast("cpu"),
        autocast("cuda"),
        attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
        *(attribute(cudnn, name) for name in ("benchmark", "deterministic", "enabled", "allow_tf32")),
        attribute(matmul, "allow_tf32"),
        attribute(matmul, "allow_fp16_reduced_precision_reduction"),
        attribute(matmul, "allow_bf16_reduced_precision_reduction"),
        *(
            attribute(owner, "fp32_precision")
            for owner in (
                *(getattr(cudnn, name, None) for name in ("rnn", "conv")),
                cudnn,
                matmul,
                torch.backends,
            )
            if hasattr(owner, "fp32_precision")
        ),
    ]
