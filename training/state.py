"""A run's state in one safetensors file: network, averaged weights, Adam's moments, and where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import AmsaError


def save_state(path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Adam, meta: dict[str, Any]) -> None:
    """Write beside, then rename: a run killed while saving keeps the state before."""
    tensors: dict[str, Tensor] = {}
    for prefix, module in (("model.", model), ("ema.", ema)):
        tensors |= {prefix + name: p.detach().contiguous() for name, p in module.named_parameters()}
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"adam.{name}.{key}"] = torch.as_tensor(value).contiguous()
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file(tensors, temporary, metadata={"training": json.dumps(meta)})
        os.replace(temporary, path)  # noqa: PTH105
    except (OSError, SafetensorError) as e:
        temporary.unlink(missing_ok=True)
        raise AmsaError(f"{path}: cannot be saved ({e}); the state before is kept: free some space and resume") from e


def load_state(path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Any]:
    """Fill network, averaged weights and optimiser from a state; returns its meta."""
    try:
        with safe_open(path, framework="pt") as f:
            meta: dict[str, Any] = json.loads(f.metadata()["training"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
        raise AmsaError(f"{path}: not a training state ({e})") from e
    try:
        with torch.no_grad():
            for prefix, module in (("model.", model), ("ema.", ema)):
                for name, p in module.named_parameters():
                    p.copy_(tensors[prefix + name])
        for name, p in model.named_parameters():
            found = {k.removeprefix(f"adam.{name}."): v for k, v in tensors.items() if k.startswith(f"adam.{name}.")}
            if found:
                optimizer.state[p] = found
    except (KeyError, RuntimeError) as e:
        raise AmsaError(f"{path}: the state of another network ({e}); start in another folder") from e
    return meta
