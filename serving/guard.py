"""What stands before the routes: who may ask, how much may be sent, headers of every answer, and the count of answers.

A page of any site can make a visitor's browser send requests to 127.0.0.1, directly or under a host name of its own that
it points there. Hence the checks of `Host` and `Origin`; there is no cookie or password to steal, but pictures and time.
"""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .jobs import Jobs
from .limits import Limits, Refusal
from .metrics import Metrics

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_PROBES = ("/healthz", "/readyz")
_UPLOADS = ("/api/jobs", "/api/upscale")
_MULTIPART = "multipart/form-data"

_HEADERS = {
    # The page loads its own files and shows pictures that it holds as blobs; nothing else, from nowhere else.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def error_response(status: int, message: str, retry_after: int | None = None) -> JSONResponse:
    """The one form of every error: {"error": "one line"}."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


class Guard:
    """Wraps the app.

    Args:
        app: with the routes.
        jobs: an upload is refused before it is read where they have no room.
        limits: of the body.
        metrics: count the answers.
        hosts: names under which the server may be reached, without port; None: any.
    """

    def __init__(self, app: ASGIApp, jobs: Jobs, limits: Limits, metrics: Metrics, hosts: frozenset[str] | None) -> None:
        self._app, self._jobs, self._limits, self._metrics, self._hosts = app, jobs, limits, metrics, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["method"], scope["path"], Headers(scope=scope))
        except Refusal as e:
            await error_response(e.status, str(e), e.retry_after)(scope, receive, answer)
        else:
            await self._app(scope, self._counted(receive), answer)
        finally:
            refused = scope["path"] if scope["path"] in _UPLOADS else None
            path = getattr(scope.get("route"), "path", refused)
            self._metrics.request(scope["method"] if path else "other", path or "other", status)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._hosts is not None and path not in _PROBES and _name_of(host) not in self._hosts:
            raise Refusal(403, f"this server is not {host or 'without a name'}; start it with --allow-host to use that name")
        if method in ("GET", "HEAD"):
            return
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, host):
            raise Refusal(403, f"a page of {origin} may not use this server; open the server's own page")
        if method != "POST" or path not in _UPLOADS:
            return
        if headers.get("content-type", "").split(";")[0].strip().lower() != _MULTIPART:
            raise Refusal(415, f"send the pictures as {_MULTIPART}, as curl -F and HTML forms do")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.upload:
            raise _too_large(self._limits)
        self._jobs.check_room()

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
            # Behind a proxy the page has another name; a loopback name on another port is another program's page.
            return parts.netloc.lower() == host.lower() or parts.hostname in (self._hosts or frozenset()) - LOOPBACK
        except ValueError:
            return False

    def _counted(self, receive: Receive) -> Receive:
        """The body, up to the limit: it is checked as it comes, whatever length was announced."""
        taken = 0

        async def receive_some() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limits.upload:
                refusal = _too_large(self._limits)
                raise HTTPException(refusal.status, str(refusal))  # FastAPI lets nothing else through while it reads a form
            return message

        return receive_some


def _too_large(limits: Limits) -> Refusal:
    most = f"{limits.upload / 1e6:g} MB"
    return Refusal(413, f"the pictures are larger than {most} together, this server's limit; use fewer or smaller ones")


def _name_of(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""
