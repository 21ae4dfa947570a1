"""`amsa serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..serving.limits import Limits
from .options import BackendName, Model, Threads
from .terminal import err, out, require_extra, say_backend


def serve(
    model: Model = None,
    backend: BackendName = "auto",
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A host name under which browsers may reach it; may be repeated.")
    ] = None,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Pictures that may wait while one is made.")] = Limits.queue,
    max_upload: Annotated[
        str, typer.Option("--max-upload", help="Most that one request may send, as 64MB.")
    ] = f"{Limits.upload // 1_000_000}MB",
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=4096, help="Pixels of the result, and of all references together.")
    ] = Limits.pixels,
    timeout: Annotated[float, typer.Option("--timeout", min=0.01, help="Seconds that a picture may take.")] = Limits.seconds,
    keep: Annotated[float, typer.Option("--keep", min=1, help="Seconds that a result waits to be fetched.")] = Limits.keep,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", help="Most memory to take, as 2GB; tensorrt: on the GPU. Default: what is free.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Serve a web page and an HTTP API that upscale photos."""
    require_extra("serve", "fastapi", "uvicorn", "python_multipart", "prometheus_client")
    from ..engine.memory import parse_bytes
    from ..engine.upscaler import Upscaler
    from ..serving.server import address_of, is_loopback, listen, run

    limits = Limits(queue, parse_bytes(max_upload), max_pixels, timeout, keep)
    with listen(host, port) as bound:
        upscaler = Upscaler(model, backend, threads, max_memory=max_memory)
        say_backend(upscaler)
        if not is_loopback(bound.getsockname()[0]):
            err.print(
                f"note: listening on {host}: whoever reaches this machine can use it, without password or encryption; "
                "put a proxy in front where that matters"
            )
        run(bound, upscaler, limits, allow_host or [], lambda: out.print(f"{address_of(bound)} (Ctrl-C stops it)"))
    err.print("stopped")
