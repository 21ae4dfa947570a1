"""One process or many: what differs between them is here, and nowhere else.

Processes are started by `torchrun`, which sets RANK, WORLD_SIZE, LOCAL_RANK and the meeting point. Gradients are averaged
by one all-reduce after the backward pass rather than by a DistributedDataParallel wrapper: the networks have at most a few
million parameters, and the gradient penalty's double backward, parts that a step does not use and accumulation then need
no special case.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def processes(device: str) -> Iterator[torch.device]:
    """Join the other processes where `torchrun` started this one; yields the device to compute on.

    Args:
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield torch.device(chosen)
        return
    if chosen == "cuda":
        local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(local)
    else:
        local = torch.device("cpu")
    dist.init_process_group("nccl" if chosen == "cuda" else "gloo")
    try:
        yield local
    finally:
        dist.destroy_process_group()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes; one that a process lacks counts as zero."""
    if world() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    for p in trained:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    grads = [p.grad for p in trained if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    for g, part in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g) / world())


def ratio(total: Tensor, count: Tensor) -> Tensor:
    """total / count with the count of all processes, scaled so that averaging over them gives the mean over all samples."""
    count = count.detach().float()
    if world() > 1:
        count = count.clone()
        dist.all_reduce(count)
        count = count / world()
    return total / torch.where(count > 0, count, torch.ones_like(count))


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process, so that all stop together."""
    if world() == 1:
        return flag
    value = torch.tensor(int(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def mean(value: float, device: torch.device) -> float:
    """Mean over the processes."""
    if world() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return float(tensor.item()) / world()
