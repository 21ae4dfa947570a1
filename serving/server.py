"""Runs the app: address, start, and an end without a traceback."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence

import uvicorn
from prometheus_client import disable_created_metrics

from ..engine.upscaler import Upscaler
from ..errors import AmsaError
from .app import create_app
from .guard import LOOPBACK
from .jobs import Jobs
from .limits import Limits
from .metrics import Metrics
from .orders import Studio

_GRACE = 5
"""Seconds that open requests have to end once the server is to stop."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one. AmsaError says why it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen()  # else two servers that start at once both get the port
        except OSError:
            bound.close()
            raise
    except (OSError, OverflowError, UnicodeError) as e:
        reason = e.strerror or str(e) if isinstance(e, OSError) else str(e)
        raise AmsaError(f"cannot listen on {host!r} port {port} ({reason}); choose another with --host and --port") from e
    return bound


def address_of(bound: socket.socket) -> str:
    """The URL of the page."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(bound: socket.socket, upscaler: Upscaler, limits: Limits, names: Sequence[str], started: Callable[[], None]) -> None:
    """Serve until SIGINT (returns) or SIGTERM (ends the process); the picture in work is given up at its next step.

    Args:
        bound: what `listen` returned.
        upscaler: fills the orders.
        limits: of this server.
        names: host names under which it may be reached, beside those of this machine. Bound to other addresses than
            loopback, none means any.
        started: called when requests are answered.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a timestamp beside each of the counters
    hosts = frozenset(name.lower() for name in names) | LOOPBACK
    metrics = Metrics()
    studio = Studio(upscaler, limits, metrics)
    studio.warm_up()
    jobs = Jobs(limits, metrics.job)
    metrics.watch(jobs)
    app = create_app(studio, jobs, metrics, hosts if names or is_loopback(bound.getsockname()[0]) else None)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=_GRACE
    )
    try:
        _Server(config, jobs, started).run([bound])
    except KeyboardInterrupt:  # uvicorn raises the signal again, once it has stopped
        pass
    finally:
        jobs.stop()
        jobs.join()


class _Server(uvicorn.Server):
    """Tells when it has started, and ends the jobs before it waits for the requests that wait for them."""

    def __init__(self, config: uvicorn.Config, jobs: Jobs, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._jobs, self._tell = jobs, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._jobs.stop()
        await super().shutdown(sockets)
