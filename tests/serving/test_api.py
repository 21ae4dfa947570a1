"""The HTTP API against a server in this process: good paths, and every refusal."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amsa.engine.images import from_array, to_array
from amsa.serving.limits import Limits
from amsa.serving.orders import bicubic, file_stem

from .conftest import HeldUpscaler, Local, Picture, StartLocal, form


def pixels(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(content)))


def expected(upscaler: HeldUpscaler, lr: bytes, *refs: bytes, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.asarray(upscaler.upscale(pixels(lr), [pixels(ref) for ref in refs], seed=seed))


def check_refused(answer: Any, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    line = answer.json()["error"]
    assert "\n" not in line
    for word in words:
        assert word in line


# ------------------------------------------------------------------------------------------------ good paths


def test_a_picture_in_one_call(start: StartLocal, picture: Picture, upscaler: HeldUpscaler) -> None:
    lr, refs = picture(48, 40), [picture(160, 170, 1), picture(80, 64, 2, "JPEG")]
    answer = start().client.post("/api/upscale", files=form(lr, *refs), data={"seed": "3"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert np.array_equal(pixels(answer.content), expected(upscaler, lr, *refs, seed=3))
    assert not np.array_equal(pixels(answer.content), expected(upscaler, lr, *refs))


def test_a_job(start: StartLocal, picture: Picture, upscaler: HeldUpscaler) -> None:
    server = start()
    lr, ref = picture(20, 16), picture(64, 72, 1)
    answer = server.client.post("/api/jobs", files=form(lr, ref), data={"format": "webp", "bicubic": "true"})
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/api/jobs/{answer.json()['id']}"
    job = server.wait(answer.json()["id"])
    assert (job["state"], job["error"], job["notes"]) == ("done", None, [])
    assert job["done"] == job["steps"] - 1 > 3  # the last step was begun and ended
    assert job["seconds"] > 0
    assert {name: file["name"] for name, file in job["files"].items()} == {
        "result": "small_x4.webp",
        "bicubic": "small_bicubic.jpg",
    }
    enlarged = server.client.get(job["files"]["bicubic"]["path"])
    assert np.abs(pixels(enlarged.content) - to_array(bicubic(from_array(pixels(lr)))).astype(int)).mean() < 3  # it is a JPEG
    result = server.client.get(job["files"]["result"]["path"])
    assert (result.headers["content-type"], len(result.content)) == ("image/webp", job["files"]["result"]["bytes"])
    assert np.abs(pixels(result.content) - expected(upscaler, lr, ref).astype(int)).mean() < 5
    check_refused(server.client.get(f"/api/jobs/{job['id']}"), 404, "no such job", "order the picture again")  # fetched
    assert (server.jobs.kept, server.jobs.waiting, server.jobs.running) == (0, 0, 0)


@pytest.mark.parametrize("format", ["png", "tif", "bmp", "jpg"])
def test_formats(start: StartLocal, picture: Picture, format: str) -> None:
    answer = start().client.post("/api/upscale", files=form(picture(16, 16), picture(64, 64)), data={"format": format})
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
    assert f"small_x4.{format}" in answer.headers["content-disposition"]


def test_transparency_is_kept_in_both_files(start: StartLocal, picture: Picture) -> None:
    server = start()
    job = server.wait(server.order(form(picture(16, 16, mode="RGBA"), picture(64, 64)), bicubic="true")["id"])
    modes = {name: Image.open(io.BytesIO(server.client.get(file["path"]).content)).mode for name, file in job["files"].items()}
    assert modes == {"result": "RGBA", "bicubic": "RGBA"}


def test_a_page_about_the_matches(start: StartLocal, picture: Picture) -> None:
    """Its scripts run, and reach neither the API nor anything else, whatever the uploads are called."""
    server = start()
    name = "</script><script>alert(1)</script>.png"
    job = server.wait(server.order(form(picture(16, 16), picture(64, 64), lr_name=name), explanation="true")["id"])
    assert list(job["files"]) == ["result", "explanation"]
    page = server.client.get(job["files"]["explanation"]["path"])
    policy = page.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'; ")
    assert "connect-src" not in policy
    assert page.headers["content-disposition"].startswith("inline; ")
    assert "<script>alert(1)" not in page.text
    assert "16x16 to 64x64" in page.text
    assert server.client.get(job["files"]["result"]["path"]).status_code == 200
    assert server.jobs.kept == 0


def test_what_the_engine_warns_of_is_told_once(start: StartLocal, picture: Picture) -> None:
    file = io.BytesIO()
    frames = [Image.fromarray(np.full((16, 16, 3), v, np.uint8)) for v in (10, 200)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    server = start()
    for _ in range(2):
        job = server.wait(server.order(form(file.getvalue(), picture(64, 64), lr_name="two.gif"))["id"])
        assert job["notes"] == ["two.gif has several frames; only the first is read"]


def test_what_the_server_takes(start: StartLocal) -> None:
    answer = start(Limits(upload=5_000_000, pixels=1_000_000)).client.get("/api").json()
    assert (answer["max_upload_bytes"], answer["max_pixels"], answer["backend"]) == (5_000_000, 1_000_000, "onnxruntime")
    assert {"png", "jpg", "webp", "tif"} <= set(answer["formats"])


def test_the_description_is_json_and_loads_nothing_from_elsewhere(start: StartLocal) -> None:
    client = start().client
    description = client.get("/openapi.json").json()
    assert set(description["paths"]) == {"/api", "/api/jobs", "/api/jobs/{id}", "/api/jobs/{id}/{file}", "/api/upscale"}
    for page in ("/docs", "/redoc"):
        check_refused(client.get(page), 404)


# ------------------------------------------------------------------------------------------------ wrong pictures and settings


def bomb() -> bytes:
    """A PNG whose header claims 100 megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("path", ["/api/jobs", "/api/upscale"])
def test_wrong_pictures(start: StartLocal, picture: Picture, path: str) -> None:
    server = start(Limits(pixels=100_000))
    lr, ref = picture(16, 16), picture(64, 64)

    def post(*files: bytes, **settings: str) -> Any:
        return server.client.post(path, files=form(*files), data=settings)

    check_refused(post(b"hello", ref), 400, "small.png is damaged or no picture")
    check_refused(post(lr, ref, b""), 400, "sharp2.png is empty")
    check_refused(post(lr, ref[: len(ref) // 2]), 400, "sharp1.png is cut short or damaged")
    check_refused(post(picture(15, 40), ref), 400, "small.png is 15x40 pixels; at least 16")
    check_refused(post(lr, picture(63, 64)), 400, "sharp1.png is 63x64 pixels; at least 64")
    check_refused(post(lr, bomb()), 400, "sharp1.png is 10000x10000 pixels; at most 0.1 megapixels are read")
    check_refused(post(picture(100, 80), ref), 400, "the result would be 400x320; at most 0.1 megapixels are made")
    check_refused(post(lr, picture(240, 240), picture(240, 240)), 400, "over 0.1 megapixels together")
    check_refused(post(lr, *[ref] * 17), 400, "17 reference photos; this server takes at most 16")
    check_refused(post(picture(16, 16, mode="RGBA"), ref, format="jpg"), 400, "JPEG holds no transparency")
    check_refused(post(lr, ref, format="gif"), 400, "format is 'gif'; give one of png, jpg")
    check_refused(post(lr, ref, format="../../x.png"), 400, "give one of png, jpg")
    check_refused(post(lr, ref, seed="-1"), 400, "seed: ", "greater than or equal to 0")
    check_refused(post(lr, ref, seed="many"), 400, "seed: ")
    check_refused(post(lr), 400, "refs: Field required")
    check_refused(server.client.post(path, files=[("refs", ("a.png", ref))]), 400, "lr: Field required")
    check_refused(server.client.post(path, files=[("refs", ("a.png", ref))], data={"lr": "text"}), 400, "lr: ")
    assert (server.jobs.waiting, server.jobs.running) == (0, 0)


def test_bodies_that_are_no_form(start: StartLocal) -> None:
    client = start().client
    check_refused(client.post("/api/jobs", json={"lr": 1}), 415, "multipart/form-data")
    check_refused(client.post("/api/jobs", data={"lr": "1"}), 415, "multipart/form-data")
    check_refused(client.post("/api/jobs"), 415, "multipart/form-data")
    headers = {"content-type": "multipart/form-data; boundary=x"}
    check_refused(client.post("/api/jobs", content=b"garbage", headers=headers), 400)
    check_refused(client.post("/api/jobs", content=b"--x\r\n", headers={"content-type": "multipart/form-data"}), 400)


def test_addresses_that_do_not_exist(start: StartLocal) -> None:
    client = start().client
    check_refused(client.get("/nothing"), 404)
    check_refused(client.post("/"), 405)
    check_refused(client.get("/api/upscale"), 405)
    for method in ("GET", "DELETE"):
        check_refused(client.request(method, "/api/jobs/abc"), 404, "no such job")
    check_refused(client.get("/api/jobs/abc/result"), 404, "no such job")


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd", "/page/index.html"]
)
def test_paths_lead_nowhere(start: StartLocal, path: str) -> None:
    check_refused(start().client.get(path), 404)


# ------------------------------------------------------------------------------------------------ sizes of bodies


def test_a_body_that_is_announced_too_large(start: StartLocal, picture: Picture) -> None:
    server = start(Limits(upload=20_000))
    answer = server.client.post("/api/jobs", files=form(picture(16, 16), os.urandom(20_001)))
    check_refused(answer, 413, "larger than 0.02 MB together")


def test_a_body_without_a_length_is_stopped_as_it_comes(start: StartLocal) -> None:
    server = start(Limits(upload=100_000))
    sent = 0

    def body() -> Any:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="lr"; filename="a.png"\r\n\r\n'
        for _ in range(2000):
            sent += 10_000
            yield bytes(10_000)
        yield b"\r\n--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    check_refused(server.client.post("/api/jobs", content=body(), headers=headers), 413, "larger than 0.1 MB")
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # noqa: PTH208  the client's connection; no spooled upload


def headers_only(server: Local, length: int) -> bytes:
    """The answer to a request that announces a body and has not sent it."""
    host, port = server.client.base_url.host, server.client.base_url.port
    assert port is not None
    with socket.create_connection((host, port), timeout=10) as connection:
        head = f"POST /api/jobs HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {length}\r\n"
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode())
        return connection.recv(2000)


def test_refusals_do_not_wait_for_the_body(start: StartLocal, picture: Picture) -> None:
    server = start(Limits(queue=1))
    assert headers_only(server, 64_000_001).startswith(b"HTTP/1.1 413 ")
    hold_one(server, picture)
    server.order(form(picture(16, 16), picture(64, 64)))
    assert headers_only(server, 1000).startswith(b"HTTP/1.1 503 ")


# ------------------------------------------------------------------------------------------------ queue, cancelling, time


def hold_one(server: Local, picture: Picture) -> str:
    """A job that stands still before its first step."""
    server.upscaler.hold.set()
    id = server.order(form(picture(16, 16), picture(64, 64)))["id"]
    assert server.upscaler.standing.wait(20)
    return str(id)


def test_a_full_queue(start: StartLocal, picture: Picture) -> None:
    server = start(Limits(queue=2))
    first = hold_one(server, picture)
    waiting = [server.order(form(picture(16, 16, i), picture(64, 64)))["id"] for i in range(2)]
    assert [server.client.get(f"/api/jobs/{id}").json()["ahead"] for id in (first, *waiting)] == [0, 1, 2]
    for path in ("/api/jobs", "/api/upscale"):
        answer = server.client.post(path, files=form(picture(16, 16), picture(64, 64)))
        check_refused(answer, 503, "the queue is full: 2 pictures wait; try again in ")
        assert int(answer.headers["retry-after"]) >= 1
    check_refused(server.client.get("/readyz"), 503, "the queue is full")
    assert server.client.get("/healthz").text == "ok\n"
    check_refused(server.client.get(f"/api/jobs/{first}/result"), 409, "the job is running")
    check_refused(server.client.get(f"/api/jobs/{waiting[0]}/result"), 409, "the job is waiting")
    server.upscaler.release()
    assert [server.wait(id)["state"] for id in (first, *waiting)] == ["done"] * 3
    assert server.client.get("/readyz").text == "ok\n"


def test_the_queue_does_not_overflow_when_all_come_at_once(start: StartLocal, picture: Picture, upscaler: HeldUpscaler) -> None:
    server = start(Limits(queue=3))
    hold_one(server, picture)
    lrs = [picture(16, 16, i) for i in range(10)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda lr: server.client.post("/api/jobs", files=form(lr, picture(64, 64))), lrs))
    assert sorted(a.status_code for a in answers) == [202] * 3 + [503] * 7
    server.upscaler.release()
    for lr, answer in zip(lrs, answers, strict=True):
        if answer.status_code == 202:
            job = server.wait(answer.json()["id"])
            result = server.client.get(job["files"]["result"]["path"])
            assert np.array_equal(pixels(result.content), expected(upscaler, lr, picture(64, 64)))  # each its own


def test_cancelling(start: StartLocal, picture: Picture) -> None:
    server = start()
    running = hold_one(server, picture)
    waiting = server.order(form(picture(16, 16), picture(64, 64)))["id"]
    for id in (waiting, running):
        assert server.client.delete(f"/api/jobs/{id}").status_code == 204
        check_refused(server.client.get(f"/api/jobs/{id}"), 404)
    server.upscaler.release()
    after = server.order(form(picture(16, 16), picture(64, 64)))["id"]
    assert server.wait(after)["state"] == "done"
    assert server.client.delete(f"/api/jobs/{after}").status_code == 204
    assert server.jobs.kept == 0
    assert 'amsa_jobs_total{outcome="cancelled"} 2.0' in server.client.get("/metrics").text


def test_hanging_up_cancels(start: StartLocal, picture: Picture) -> None:
    server = start()
    server.upscaler.hold.set()
    with pytest.raises(Exception, match="timed out"):
        server.client.post("/api/upscale", files=form(picture(16, 16), picture(64, 64)), timeout=0.5)
    deadline = time.monotonic() + 10
    while server.jobs._jobs and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not server.jobs._jobs


def test_a_time_limit(start: StartLocal, picture: Picture) -> None:
    server = start(Limits(seconds=0.0001))
    job = server.wait(server.order(form(picture(16, 16), picture(64, 64)))["id"])
    assert (job["state"], job["files"]) == ("failed", {})
    assert "took longer than 0.0001 s" in job["error"]
    check_refused(server.client.get(f"/api/jobs/{job['id']}/result"), 504, "took longer")
    check_refused(server.client.post("/api/upscale", files=form(picture(16, 16), picture(64, 64))), 504, "took longer")


def test_results_are_not_kept_for_ever(start: StartLocal, picture: Picture) -> None:
    server = start(Limits(keep=0.3))
    job = server.wait(server.order(form(picture(16, 16), picture(64, 64)))["id"])
    assert server.jobs.kept > 0
    deadline = time.monotonic() + 5
    while server.jobs.kept and time.monotonic() < deadline:  # nobody asks, and yet it goes
        time.sleep(0.02)
    assert server.jobs.kept == 0
    check_refused(server.client.get(f"/api/jobs/{job['id']}/result"), 404, "too old")


def test_a_bug_is_500_and_the_next_picture_is_made(
    start: StartLocal, picture: Picture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = start()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret path")

    with monkeypatch.context() as patch:
        patch.setattr(HeldUpscaler, "upscale_photo", fail)
        answer = server.client.post("/api/upscale", files=form(picture(16, 16), picture(64, 64)))
    check_refused(answer, 500, "its log says why")
    assert "secret" not in answer.text
    assert "a secret path" in caplog.text
    assert server.client.post("/api/upscale", files=form(picture(16, 16), picture(64, 64))).status_code == 200


# ------------------------------------------------------------------------------------------------ who may ask


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "[::2]", "", "["]
)
def test_foreign_host_names(start: StartLocal, picture: Picture, host: str) -> None:
    client = start().client
    for path in ("/", "/api", "/metrics", "/openapi.json"):
        check_refused(client.get(path, headers={"host": host}), 403, "this server is not")
    check_refused(client.post("/api/jobs", files=form(picture(16, 16), picture(64, 64)), headers={"host": host}), 403)
    assert client.get("/healthz", headers={"host": host}).status_code == 200  # a probe asks by the machine's address


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_names_of_this_machine(start: StartLocal, host: str) -> None:
    assert start().client.get("/api", headers={"host": host}).status_code == 200


def test_any_name_where_none_was_given(start: StartLocal) -> None:
    assert start(hosts=None).client.get("/api", headers={"host": "sr.example"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost:3000", "http://["])
def test_pages_of_others(start: StartLocal, picture: Picture, origin: str) -> None:
    client = start().client
    answer = client.post("/api/jobs", files=form(picture(16, 16), picture(64, 64)), headers={"origin": origin})
    check_refused(answer, 403, "may not use this server")
    assert "access-control-allow-origin" not in answer.headers
    check_refused(client.delete("/api/jobs/x", headers={"origin": origin}), 403)
    check_refused(client.options("/api/jobs", headers={"origin": origin, "access-control-request-method": "POST"}), 403)


def test_its_own_page_directly_and_behind_a_proxy(start: StartLocal) -> None:
    client = start().client
    own = str(client.base_url).rstrip("/")
    check_refused(client.delete("/api/jobs/x", headers={"origin": own}), 404)  # past the guard
    proxied = start(hosts=frozenset({"127.0.0.1", "sr.example"})).client
    check_refused(proxied.delete("/api/jobs/x", headers={"origin": "https://sr.example"}), 404)
    check_refused(proxied.delete("/api/jobs/x", headers={"origin": "https://other.example"}), 403)
    assert proxied.get("/api", headers={"host": "sr.example"}).status_code == 200


def test_headers_of_every_answer(start: StartLocal, picture: Picture) -> None:
    client = start().client
    made = client.post("/api/upscale", files=form(picture(16, 16), picture(64, 64)))
    for answer in (client.get("/"), client.get("/app.js"), client.get("/nothing"), client.get("/", headers={"host": "x"}), made):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in {name for name in answer.headers if name == "x-powered-by"}


# ------------------------------------------------------------------------------------------------ names of files


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("small.png", "small"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\me.jpg", "me"),
        ("..", "picture"),
        ("", "picture"),
        (".png", "png"),
        ('a"b\r\nX: y.png', "a_b__X_ y"),
        ("größe 中.jpg", "größe 中"),
        ("x" * 300 + ".png", "x" * 80),
    ],
)
def test_stems(name: str, stem: str) -> None:
    assert file_stem(name) == stem


@pytest.mark.parametrize("name", ["../../größe.png", 'x"; filename="evil.exe', "a\\b\\c.png", "%41.png", "\u202egnp.exe"])
def test_download_names(start: StartLocal, picture: Picture, name: str) -> None:
    answer = start().client.post("/api/upscale", files=form(picture(16, 16), picture(64, 64), lr_name=name))
    assert answer.status_code == 200, answer.text
    disposition = answer.headers["content-disposition"]
    plain, encoded = disposition.removeprefix('attachment; filename="').split("\"; filename*=UTF-8''")
    assert plain.endswith("_x4.png")
    assert encoded.endswith("_x4.png")
    assert plain.isascii()
    assert plain.isprintable()
    assert not set('"/\\%') & set(plain)
    assert not set('"/\\ ;') & set(encoded)


# ------------------------------------------------------------------------------------------------ metrics


def test_metrics(start: StartLocal, picture: Picture) -> None:
    server = start()
    server.client.post("/api/upscale", files=form(picture(20, 16), picture(64, 64)))
    server.client.post("/api/upscale", files=form(b"x", picture(64, 64)))
    server.client.get("/no/such/address")
    server.order(form(picture(16, 16), picture(64, 64)))
    lines = dict(line.rsplit(" ", 1) for line in server.client.get("/metrics").text.splitlines() if not line.startswith("#"))
    assert lines['amsa_requests_total{method="POST",path="/api/upscale",status="200"}'] == "1.0"
    assert lines['amsa_requests_total{method="POST",path="/api/upscale",status="400"}'] == "1.0"
    assert lines['amsa_requests_total{method="other",path="other",status="404"}'] == "1.0"
    assert float(lines['amsa_jobs_total{outcome="done"}']) >= 1
    assert lines['amsa_jobs_total{outcome="failed"}'] == "0.0"
    assert float(lines["amsa_result_pixels_total"]) >= 16 * 20 * 16
    for stage in ("encode_ref", "encode_lr", "match", "restore", "finish"):
        assert float(lines[f'amsa_stage_seconds_total{{stage="{stage}"}}']) > 0
    assert float(lines["amsa_peak_memory_bytes"]) > 50e6
    assert {"amsa_queue_length", "amsa_running", "amsa_kept_bytes", "amsa_job_seconds_count"} <= set(lines)
    assert not [name for name in lines if "no/such" in name]


def test_requests_of_several_threads_do_not_mix(start: StartLocal, picture: Picture, upscaler: HeldUpscaler) -> None:
    server = start()
    ref = picture(64, 64)
    wrong: list[int] = []

    def ask(i: int) -> None:
        lr = picture(16, 16, i)
        answer = server.client.post("/api/upscale", files=form(lr, ref), data={"seed": str(i)})
        if answer.status_code != 200 or not np.array_equal(pixels(answer.content), expected(upscaler, lr, ref, seed=i)):
            wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_package_needs_no_torch() -> None:
    import subprocess
    import sys

    program = (
        "import sys, pkgutil, importlib, amsa.serving, json\n"
        "for m in pkgutil.iter_modules(amsa.serving.__path__, 'amsa.serving.'): importlib.import_module(m.name)\n"
        "print(json.dumps([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
