"""The routes: the page, the API, health and metrics."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp

from .._version import __version__
from .guard import Guard, error_response
from .jobs import File, Job, Jobs, State
from .limits import REFERENCES, Refusal
from .metrics import Metrics
from .notes import gathered, routed
from .orders import PICTURE_FORMATS, Order, Studio
from .uploads import Upload

# A page that a job made has its script and pictures inside, and names of uploads: it runs as a stranger's, reaching nothing.
_PAGE_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'none'"
)
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Error:
    """What every answer from 400 on holds."""

    error: str


@dataclass(frozen=True)
class FileInfo:
    """A file that waits to be fetched, once."""

    path: str
    media_type: str
    name: str
    bytes: int


@dataclass(frozen=True)
class JobInfo:
    """A job: `ahead` others come before it; `done` of `steps` steps are done, the next is `step`; `seconds_left` is a guess."""

    id: str
    state: State
    ahead: int
    done: int
    steps: int
    step: str
    seconds: float
    seconds_left: float | None
    notes: list[str]
    error: str | None
    files: dict[str, FileInfo]


@dataclass(frozen=True)
class ServerInfo:
    """What this server runs, and what it takes."""

    version: str
    backend: str
    device: str
    trained: bool
    formats: list[str]
    max_upload_bytes: int
    max_pixels: int
    max_references: int
    keep_seconds: float


_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "a picture or a setting that cannot be used"},
    403: {"model": Error, "description": "a foreign Host or Origin"},
    413: {"model": Error, "description": "the pictures are too large"},
    415: {"model": Error, "description": "not multipart/form-data"},
    503: {"model": Error, "description": "the queue is full; Retry-After says when to try again"},
}
_FILE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": {}}, "description": "the file"},
    400: {"model": Error, "description": "the job failed at the pictures"},
    404: {"model": Error, "description": "no such job or file, or it was fetched"},
    409: {"model": Error, "description": "not done yet"},
    504: {"model": Error, "description": "the job took too long"},
}

Lr = Annotated[UploadFile, Form(description="The picture to enlarge.")]
Refs = Annotated[list[UploadFile], Form(description="Sharp photos of something similar.")]
Seed = Annotated[int, Form(ge=0, lt=2**31, description="Of the initial matches: equal seeds, equal pictures.")]
Format = Annotated[str, Form(description=f"Of the result: {', '.join(PICTURE_FORMATS)}.")]
Explanation = Annotated[bool, Form(description="Also make the file `explanation`, a page that shows what was matched where.")]
Bicubic = Annotated[bool, Form(description="Also make the file `bicubic`, the picture enlarged without references.")]


def create_app(studio: Studio, jobs: Jobs, metrics: Metrics, hosts: frozenset[str] | None = None) -> ASGIApp:
    """The server as an ASGI app.

    Args:
        studio: fills orders.
        jobs: queues them.
        metrics: what /metrics shows.
        hosts: names under which the server may be reached; None: any.
    """
    limits, upscaler = studio.limits, studio.upscaler
    admission = threading.Lock()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with routed():
            yield

    # The interactive documentation would load scripts from a content delivery network.
    app = FastAPI(title="amsa", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    _answer_errors(app)
    _serve_page(app)

    def queue(
        lr: UploadFile, refs: Sequence[UploadFile], seed: int, format: str, bicubic: bool = False, explanation: bool = False
    ) -> Job:
        with admission:  # one at a time: its files are in memory from here on, those of the others in temporary files
            jobs.check_room()
            uploads = [Upload(_shown(f, "LR" if i == 0 else f"reference {i}"), f.file.read()) for i, f in enumerate((lr, *refs))]
            order = Order(uploads[0], uploads[1:], seed, format, bicubic, explanation)
            notes: list[str] = []
            with gathered(notes):
                studio.check(order)
            return jobs.add(lambda progress: studio.fill(order, progress), notes)

    @app.get("/api")
    async def info() -> ServerInfo:
        """What this server runs, and what it takes."""
        return ServerInfo(
            version=__version__,
            backend=upscaler.backend,
            device=upscaler.device,
            trained=upscaler.trained,
            formats=list(PICTURE_FORMATS),
            max_upload_bytes=limits.upload,
            max_pixels=limits.pixels,
            max_references=REFERENCES,
            keep_seconds=limits.keep,
        )

    @app.post("/api/jobs", status_code=202, responses=_ANSWERS)
    def order(
        response: Response,
        lr: Lr,
        refs: Refs,
        seed: Seed = 0,
        format: Format = "png",
        bicubic: Bicubic = False,
        explanation: Explanation = False,
    ) -> JobInfo:
        """Queue a picture. What comes back names the job; ask for it again to see how far it is."""
        job = queue(lr, refs, seed, format, bicubic, explanation)
        response.headers["Location"] = f"/api/jobs/{job.id}"
        return _info(jobs, job)

    @app.get("/api/jobs/{id}", responses={404: _FILE_ANSWERS[404]})
    async def status(id: str) -> JobInfo:
        """How far a job is."""
        return _info(jobs, jobs.get(id))

    @app.get("/api/jobs/{id}/{file}", response_class=Response, responses=_FILE_ANSWERS)
    async def fetch(id: str, file: str) -> Response:
        """Fetch what a job made: `result`, `bicubic` or `explanation`, each once; with the last the job is forgotten."""
        return _file_response(jobs.take(id, file))

    @app.delete("/api/jobs/{id}", status_code=204, response_model=None, responses={404: _FILE_ANSWERS[404]})
    async def cancel(id: str) -> None:
        """Cancel a job, or forget its files."""
        jobs.remove(id)

    @app.post("/api/upscale", response_class=Response, responses={**_ANSWERS, **_FILE_ANSWERS})
    async def upscale(request: Request, lr: Lr, refs: Refs, seed: Seed = 0, format: Format = "png") -> Response:
        """Wait for the picture and answer with it. To hang up is to cancel."""
        job = await run_in_threadpool(queue, lr, refs, seed, format)
        while not job.over:
            await asyncio.sleep(0.05)
            if await request.is_disconnected():
                jobs.remove(job.id)
        if job.unwanted:
            raise Refusal(503, "the server is stopping; try again when it is back", 10)
        return _file_response(jobs.take(job.id, "result"))

    @app.get("/healthz", include_in_schema=False)
    async def health() -> PlainTextResponse:
        """That the process answers."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz", include_in_schema=False)
    async def ready() -> PlainTextResponse:
        """That a picture would be taken now."""
        jobs.check_room()
        return PlainTextResponse("ok\n")

    @app.get("/metrics", include_in_schema=False)
    async def measurements() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return Guard(app, jobs, limits, metrics, hosts)


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, e: Refusal) -> JSONResponse:
        return error_response(e.status, str(e), e.retry_after)

    @app.exception_handler(HTTPException)
    async def failed(_: Request, e: HTTPException) -> JSONResponse:
        return error_response(e.status_code, str(e.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, e: RequestValidationError) -> JSONResponse:
        first = e.errors()[0]
        return error_response(400, f"{first['loc'][-1]}: {first['msg']}; /openapi.json says what this server takes")

    @app.exception_handler(Exception)
    async def broken(_: Request, e: Exception) -> JSONResponse:
        return error_response(500, "the server failed; its log says why")


def _serve_page(app: FastAPI) -> None:
    """The page's files, from memory: no request's path ever becomes a path here."""
    for file in (resources.files(__package__) / "page").iterdir():
        content, media_type = file.read_bytes(), _MEDIA_TYPES[PurePosixPath(file.name).suffix]

        async def page(content: bytes = content, media_type: str = media_type) -> Response:
            return Response(content, media_type=media_type)

        app.get("/" if file.name == "index.html" else f"/{file.name}", include_in_schema=False)(page)


def _info(jobs: Jobs, job: Job) -> JobInfo:
    done, steps, step = job.step
    files = {
        name: FileInfo(f"/api/jobs/{job.id}/{name}", file.media_type, file.name, len(file.content))
        for name, file in job.files.items()
    }
    error = None if job.failure is None else str(job.failure)
    left = job.seconds_left()
    return JobInfo(
        id=job.id,
        state=job.state,
        ahead=jobs.ahead(job),
        done=done,
        steps=steps,
        step=step,
        seconds=round(job.seconds(), 2),
        seconds_left=None if left is None else round(left, 1),
        notes=job.notes,
        error=error,
        files=files,
    )


def _shown(file: UploadFile, otherwise: str) -> str:
    """A file's name as it is shown in messages: one printable line of at most 80 characters."""
    name = "".join(c if c.isprintable() else "?" for c in file.filename or "")
    return name[:80] or otherwise


def _file_response(file: File) -> Response:
    """A picture as a download, a page to be looked at; under its name, of which old clients see the ASCII (RFC 6266)."""
    page = file.media_type.startswith("text/html")
    plain = "".join(c if c.isascii() and c not in '"\\%' else "_" for c in file.name)
    disposition = f"{'inline' if page else 'attachment'}; filename=\"{plain}\"; filename*=UTF-8''{quote(file.name, safe='')}"
    headers = {"Content-Disposition": disposition} | ({"Content-Security-Policy": _PAGE_POLICY} if page else {})
    return Response(file.content, media_type=file.media_type, headers=headers)
