"""Pictures, a server in this process, and `amsa serve` in a process of its own."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
from PIL import Image

from amsa.engine.images import Photo
from amsa.engine.upscaler import Upscaler
from amsa.serving.app import create_app
from amsa.serving.guard import LOOPBACK
from amsa.serving.jobs import Jobs
from amsa.serving.limits import Limits
from amsa.serving.metrics import Metrics
from amsa.serving.orders import Studio
from amsa.serving.server import address_of, listen

Picture = Callable[..., bytes]


@pytest.fixture(scope="session")
def picture() -> Picture:
    """picture(width, height, seed=0, format="PNG", mode="RGB"): the content of a picture file."""

    def make(width: int, height: int, seed: int = 0, format: str = "PNG", mode: str = "RGB") -> bytes:
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(file, format)
        return file.getvalue()

    return make


def form(lr: bytes, *refs: bytes, lr_name: str = "small.png") -> list[tuple[str, tuple[str, bytes]]]:
    """Uploads as httpx takes them."""
    return [("lr", (lr_name, lr)), *(("refs", (f"sharp{i}.png", ref)) for i, ref in enumerate(refs, 1))]


class HeldUpscaler(Upscaler):
    """The shipped model, which stands still before every step while `hold` is set."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.hold, self.standing, self.go = threading.Event(), threading.Event(), threading.Event()

    def upscale_photo(self, *arguments: Any, progress: Any = None, **settings: Any) -> Photo:
        def step(*values: Any) -> None:
            if self.hold.is_set():
                self.standing.set()
                assert self.go.wait(20)
            progress(*values)

        return super().upscale_photo(*arguments, progress=step if progress else None, **settings)

    def release(self) -> None:
        self.hold.clear()
        self.go.set()


@dataclass
class Local:
    """A server in this process."""

    client: httpx2.Client
    jobs: Jobs
    upscaler: HeldUpscaler
    metrics: Metrics

    def order(self, files: Any, **settings: Any) -> dict[str, Any]:
        answer = self.client.post("/api/jobs", files=files, data=settings)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def wait(self, id: str) -> dict[str, Any]:
        """Ask until the job has ended."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            job = self.client.get(f"/api/jobs/{id}").json()
            if job["state"] in ("done", "failed"):
                return job
            time.sleep(0.01)
        raise AssertionError(job)


StartLocal = Callable[..., Local]


@pytest.fixture(scope="session")
def upscaler() -> HeldUpscaler:
    return HeldUpscaler()


@pytest.fixture
def start(upscaler: HeldUpscaler) -> Iterator[StartLocal]:
    """start(limits, hosts=..): a server in this process."""
    started: list[tuple[Local, uvicorn.Server, threading.Thread]] = []

    def start_(limits: Limits | None = None, hosts: frozenset[str] | None = LOOPBACK) -> Local:
        metrics = Metrics()
        studio = Studio(upscaler, limits or Limits(), metrics)
        jobs = Jobs(studio.limits, metrics.job)
        metrics.watch(jobs)
        app = create_app(studio, jobs, metrics, hosts)
        bound = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        client = httpx2.Client(base_url=address_of(bound), timeout=20, trust_env=False)
        started.append((Local(client, jobs, upscaler, metrics), server, thread))
        return started[-1][0]

    for event in (upscaler.hold, upscaler.standing, upscaler.go):
        event.clear()
    yield start_
    upscaler.release()
    for local, server, thread in started:
        local.jobs.stop()
        local.jobs.join()
        local.client.close()
        server.should_exit = True
        thread.join()


@dataclass
class Served:
    """`amsa serve` in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    temporary: Path

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=20, trust_env=False)

    def stop(self, by: int = signal.SIGINT) -> tuple[int, str]:
        """Exit code and stderr."""
        self.process.send_signal(by)
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """serve("--queue", 2, ..): starts `amsa serve` with the shipped model, one thread, on a free port."""
    started: list[Served] = []

    def start_(*arguments: object, port: int = 0) -> Served:
        temporary = tmp_path_factory.mktemp("tmp")
        command = [sys.executable, "-m", "amsa", "serve", "--threads", "1", "--port", str(port), *map(str, arguments)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(temporary)}, **pipes)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://"), process.communicate()[1]
        started.append(Served(process, line.split()[0], temporary))
        return started[-1]

    yield start_
    for served in started:
        if served.process.poll() is None:
            served.process.kill()
            served.process.communicate()
