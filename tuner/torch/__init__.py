"""Helpers for distributed PyTorch inside a trial; whoever imports this package wants torch."""

from __future__ import annotations

from tuner.torch.sharded import load_sharded, save_sharded

__all__ = ["load_sharded", "save_sharded"]
