"""A stage's state in one safetensors file: networks, averaged weights, Adam's moments, and where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import AmsaError

Optimizers = Mapping[str, tuple[nn.Module, torch.optim.Optimizer]]
"""By name: a network and what optimises it."""


def save_state(path: Path, networks: Mapping[str, nn.Module], optimizers: Optimizers, meta: dict[str, Any]) -> None:
    """Write beside, then rename: a run killed while saving keeps the state before."""
    tensors: dict[str, Tensor] = {}
    for name, module in networks.items():
        tensors |= {f"{name}.{k}": p.detach().cpu().contiguous() for k, p in module.named_parameters()}
    for name, (module, optimizer) in optimizers.items():
        for k, p in module.named_parameters():
            for key, value in optimizer.state.get(p, {}).items():
                tensors[f"{name}.{k}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file(tensors, temporary, metadata={"training": json.dumps(meta)})
        os.replace(temporary, path)  # noqa: PTH105
    except (OSError, SafetensorError) as e:
        temporary.unlink(missing_ok=True)
        raise AmsaError(f"{path}: cannot be saved ({e}); the state before is kept: free some space and resume") from e


def load_state(path: Path, networks: Mapping[str, nn.Module], optimizers: Optimizers) -> dict[str, Any]:
    """Fill networks and optimisers from a state; returns its meta. AmsaError: not a state, or of another network."""
    try:
        with safe_open(path, framework="pt") as f:
            meta: dict[str, Any] = json.loads(f.metadata()["training"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
        raise AmsaError(f"{path}: not a training state ({e})") from e
    try:
        with torch.no_grad():
            for name, module in networks.items():
                for k, p in module.named_parameters():
                    p.copy_(tensors.pop(f"{name}.{k}"))
        for name, (module, optimizer) in optimizers.items():
            for k, p in module.named_parameters():
                prefix = f"{name}.{k}."
                # Adam keeps the step on the CPU, the moments where the parameter is.
                found = {key: tensors.pop(prefix + key) for key in ("step", "exp_avg", "exp_avg_sq") if prefix + key in tensors}
                if found:
                    optimizer.state[p] = {key: v if key == "step" else v.to(p.device).view_as(p) for key, v in found.items()}
    except (KeyError, RuntimeError) as e:
        raise AmsaError(f"{path}: the state of another network ({e}); start in another folder") from e
    if tensors:
        raise AmsaError(f"{path}: the state of another network (it also has {min(tensors)}); start in another folder")
    return meta
