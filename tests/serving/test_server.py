"""`amsa serve` as a process: address, many at once, what is left on the disk, and how it ends."""

from __future__ import annotations

import io
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from amsa.engine.upscaler import Upscaler
from amsa.errors import AmsaError
from amsa.serving.server import address_of, is_loopback, listen

from .conftest import Picture, Serve, form


def amsa(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "amsa", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_twenty_at_once(serve: Serve, picture: Picture) -> None:
    """While one is made eight wait, the others are told to come again; every picture is its own, and nothing stays behind."""
    served = serve()
    ref = picture(64, 64, 99)
    lrs = [picture(16, 16 + i, i) for i in range(20)]
    with served.client() as client, ThreadPoolExecutor(20) as pool:
        slow = client.post("/api/jobs", files=form(picture(300, 300), ref)).json()["id"]
        wait_until_running(client)
        answers = list(pool.map(lambda lr: client.post("/api/jobs", files=form(lr, ref)), lrs))
        assert sorted(answer.status_code for answer in answers) == [202] * 8 + [503] * 12
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 503)
        assert client.delete(f"/api/jobs/{slow}").status_code == 204
        upscaler = Upscaler(threads=1)
        for lr, answer in zip(lrs, answers, strict=True):
            if answer.status_code == 202:
                result = fetch(client, answer.json()["id"])
                expected = upscaler.upscale(np.asarray(Image.open(io.BytesIO(lr))), [np.asarray(Image.open(io.BytesIO(ref)))])
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(result))), expected)
                assert client.get(f"/api/jobs/{answer.json()['id']}").status_code == 404
        assert "amsa_kept_bytes 0.0" in client.get("/metrics").text
    assert list(served.temporary.iterdir()) == []
    assert served.stop() == (0, stderr_of())
    assert list(served.temporary.iterdir()) == []


def wait_until_running(client: httpx2.Client) -> None:
    deadline = time.monotonic() + 20
    while "amsa_running 1.0" not in client.get("/metrics").text and time.monotonic() < deadline:
        time.sleep(0.05)


def fetch(client: httpx2.Client, id: str) -> bytes:
    deadline = time.monotonic() + 30
    while client.get(f"/api/jobs/{id}").json()["state"] != "done" and time.monotonic() < deadline:
        time.sleep(0.05)
    return client.get(f"/api/jobs/{id}/result").raise_for_status().content


def stderr_of(*notes: str) -> Any:
    """Equal to what a server that ended well has said: its backend, notes, and that it stopped."""

    class Expected:
        def __eq__(self, text: object) -> bool:
            backend, *said, last = str(text).splitlines()
            return backend.startswith("backend: onnxruntime (CPU") and said == list(notes) and last == "stopped"

    return Expected()


def test_uploads_are_in_files_without_a_name(serve: Serve) -> None:
    """While 3 MB come in, and after the client has gone away in the middle of them."""
    served = serve()
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = "POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        head += (
            'Content-Length: 9000000\r\n\r\n--x\r\nContent-Disposition: form-data; name="lr"; filename="../../evil.png"\r\n\r\n'
        )
        connection.sendall(head.encode() + bytes(3_000_000))
        time.sleep(0.3)
        assert list(served.temporary.iterdir()) == []
    with served.client() as client:
        assert client.get("/healthz").text == "ok\n"
    assert list(served.temporary.iterdir()) == []
    assert served.stop() == (0, stderr_of())


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_stopping_while_pictures_are_made(serve: Serve, picture: Picture, by: int) -> None:
    """Those who wait for a picture are told, the one in work is given up, and there is no traceback."""
    served = serve()
    files = form(picture(300, 300), picture(300, 300, 1))
    with served.client() as client, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, "/api/upscale", files=files) for _ in range(2)]
        wait_until_running(client)
        begin = time.monotonic()
        code, errors = served.stop(by)
        assert time.monotonic() - begin < 15
        assert [(w.result().status_code, "stopping" in w.result().text) for w in waiting] == [(503, True)] * 2
    if by == signal.SIGINT:
        assert (code, errors) == (0, stderr_of())
    else:
        assert (code, len(errors.splitlines())) == (-signal.SIGTERM, 1)
    assert list(served.temporary.iterdir()) == []


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        code, out, errors = amsa("serve", "--port", port)
    assert (code, out) == (2, "")
    line = f"error: cannot listen on '127.0.0.1' port {port} (Address already in use); choose another with --host and --port\n"
    assert errors == line


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "", "a" * 300])
def test_addresses_that_cannot_be_had(host: str) -> None:
    with pytest.raises(AmsaError, match=r"^cannot listen on '.*' port 0 \(.+\); choose another"):
        listen(host, 0)


def test_addresses() -> None:
    for host, pattern in (("127.0.0.1", r"http://127\.0\.0\.1:\d+"), ("localhost", r"http://(127\.0\.0\.1|\[::1\]):\d+")):
        with listen(host, 0) as bound:
            assert re.fullmatch(pattern, address_of(bound))
            assert is_loopback(bound.getsockname()[0])
    assert [is_loopback(host) for host in ("::1", "127.9.9.9", "localhost", "0.0.0.0", "::", "192.168.1.2")] == [True] * 3 + [
        False
    ] * 3


def test_listening_to_others_is_said(serve: Serve) -> None:
    served = serve("--host", "0.0.0.0")
    port = served.url.rsplit(":", 1)[1]
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert client.get("/api", headers={"host": "any.example"}).status_code == 200
    _, errors = served.stop()
    assert "note: listening on 0.0.0.0: whoever reaches this machine can use it, without password or encryption" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "absent"], "absent: no such model"),
        (["--backend", "cuda"], "choose one of auto, onnxruntime, torch"),
        (["--max-upload", "64 apples"], "64 apples"),
    ],
)
def test_models_that_cannot_be_served(arguments: list[str], words: str) -> None:
    code, out, errors = amsa("serve", "--port", 0, *arguments)
    assert (code, out, len(errors.splitlines())) == (2, "", 1)
    assert errors.startswith("error: ")
    assert words in errors


def test_the_command_names_the_extra_it_needs() -> None:
    program = "import sys; sys.modules['fastapi'] = None; sys.argv = ['amsa', 'serve']; from amsa.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: this command needs fastapi; install with: pip install 'amsa[serve]'\n"
