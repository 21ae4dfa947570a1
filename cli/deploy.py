"""`amsa deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import AmsaError
from ..serving.limits import Limits
from .terminal import out


def deploy(
    server: Annotated[str, typer.Argument(help="For which server: triton.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model repository to write.")],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model folder or .amsa file; default: the shipped one.")
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", help="onnxruntime: on the CPU; tensorrt: on the GPU, with engines of `amsa build`.")
    ] = "onnxruntime",
    engines: Annotated[
        Path | None, typer.Option("--engines", help="tensorrt: folder that `amsa build -o` wrote to; default: MODEL.engines.")
    ] = None,
    instances: Annotated[int, typer.Option("--instances", min=1, help="Pictures that are made at a time.")] = 1,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Requests that may wait; the next is refused.")] = Limits.queue,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=4096, help="Pixels of the result, and of all references together.")
    ] = Limits.pixels,
) -> None:
    """Write a model repository for NVIDIA Triton Inference Server, with a client."""
    if server != "triton":
        raise AmsaError(f"unknown server {server!r}; amsa deploys for triton")
    from ..serving.triton.interface import Settings
    from ..serving.triton.repository import deploy as write

    done = write(output, model, Settings(backend, instances, queue, max_pixels), engines)
    with_engines = f", engines {', '.join(done.engines)}" if done.engines else ""
    out.print(f"{done.path}: {done.size / 1e6:.1f} MB, {backend}{with_engines}; {done.path / 'README.md'} says how to serve it")
