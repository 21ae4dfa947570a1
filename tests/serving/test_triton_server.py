"""A deployed repository in a real Triton server, on the CPU.

`make test-triton` runs this. AMSA_TRITON names the Python of a virtual environment that has the server and amsa, which needs
neither root nor a container: of PyTriton only the server's files are used, which its wheel brings.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from amsa.serving.triton.client import upscale
from amsa.serving.triton.interface import INPUTS, OUTPUTS, Settings
from amsa.serving.triton.repository import deploy

Picture = Callable[..., bytes]
PYTHON = os.environ.get("AMSA_TRITON")
QUEUE = 24
START = 60  # seconds

pytestmark = pytest.mark.skipif(PYTHON is None, reason="no Triton server; `make test-triton` brings one")


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    log: Path
    http: str
    grpc: str

    def client(self) -> Any:
        return tritonclient.http.InferenceServerClient(self.http, network_timeout=60)


def start(repository: Path, scratch: Path) -> Served:
    """Start a server, without waiting for it."""
    find = "import importlib.util as u; print(u.find_spec('pytriton').submodule_search_locations[0])"
    found = subprocess.run([str(PYTHON), "-c", find], capture_output=True, text=True, check=True).stdout.strip()
    triton = Path(found) / "tritonserver"
    backend = scratch / "backends/python"
    backend.mkdir(parents=True)
    for path in (triton / "backends/python").iterdir():
        (backend / path.name).symlink_to(path)
    version = subprocess.run(
        [str(PYTHON), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (backend / "triton_python_backend_stub").symlink_to(triton / "python_backend_stubs" / version / "triton_python_backend_stub")
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(free.getsockname()[1])
    command = [triton / "bin/tritonserver", f"--model-repository={repository}", f"--backend-directory={scratch / 'backends'}"]
    command += ["--http-address=127.0.0.1", f"--http-port={ports[0]}", "--grpc-address=127.0.0.1", f"--grpc-port={ports[1]}"]
    command += ["--allow-metrics=false"]
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(Path(found).parent / "nvidia_pytriton.libs"),
        "PATH": f"{Path(str(PYTHON)).parent}:{os.environ['PATH']}",  # from which the Python backend takes its Python
    }
    log = scratch / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([str(word) for word in command], env=environment, stdout=output, stderr=output)
    return Served(process, log, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("triton")
    deploy(folder / "repository", settings=Settings(instances=2, queue=QUEUE, pixels=1_000_000))
    server = start(folder / "repository", folder)
    try:
        deadline = time.monotonic() + START
        while not ready(server):
            assert time.monotonic() < deadline, server.log.read_text()
            assert server.process.poll() is None, server.log.read_text()
            time.sleep(0.1)
        yield server
    finally:
        server.process.send_signal(signal.SIGINT)
        server.process.wait(30)


def ready(server: Served) -> bool:
    try:
        with server.client() as client:
            return bool(client.is_model_ready("amsa"))
    except OSError:
        return False


def test_server_reads_the_configuration_as_declared(served: Served) -> None:
    with served.client() as client:
        metadata = client.get_model_metadata("amsa")
        config = client.get_model_config("amsa")
    wire = {"TYPE_STRING": "BYTES", "TYPE_INT32": "INT32"}
    for kind, tensors in (("inputs", INPUTS), ("outputs", OUTPUTS)):
        declared = [{"name": t.name, "datatype": wire[t.data_type], "shape": [*t.dims]} for t in tensors]
        assert metadata[kind] == declared
    assert config["instance_group"][0]["count"] == 2
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == QUEUE


def test_client_makes_the_command_lines_picture(served: Served, picture: Picture, tmp_path: Path) -> None:
    (tmp_path / "lr.png").write_bytes(picture(20, 16))
    (tmp_path / "a.jpg").write_bytes(picture(72, 64, 1, "JPEG"))
    (tmp_path / "b.png").write_bytes(picture(64, 80, 2))
    pictures = ["lr.png", "a.jpg", "b.png"]
    client = Path(served.log).parent / "repository/client.py"

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run(client, *pictures, "-o", "sr.png", "--url", f"http://{served.http}/")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sr.png: ")
    assert run("-m", "amsa", "upscale", *pictures, "-o", "expected.png").returncode == 0
    assert (tmp_path / "sr.png").read_bytes() == (tmp_path / "expected.png").read_bytes()

    for arguments, words in (
        (("lr.png", "lr.png", "-o", "no.png"), "reference 1 is 20x16 pixels"),
        (("lr.png", "a.jpg", "-o", "no.gif"), "FORMAT is 'gif'"),
        (("lr.png", "a.jpg", "-o", "no"), "no has no suffix"),
        (("lr.png", "a.jpg", "-o", "none/no.png"), "none: no such folder"),
        (("lr.png", "none.jpg", "-o", "no.png"), "none.jpg cannot be read"),
        (("lr.png", "a.jpg", "-o", "no.png", "--timeout", 0.001), "no answer within"),
        (("lr.png", "a.jpg", "-o", "no.png", "--url", "127.0.0.1:1"), "no Triton server answers HTTP there (Connection refused)"),
        (("lr.png", "a.jpg", "-o", "no.png", "--url", served.grpc), "no Triton server answers HTTP there"),
        (("lr.png", "a.jpg", "-o", "no.png", "--url", "host:port"), "is no address of a server"),
    ):
        done = run(client, "--url", served.http, *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert not [*tmp_path.glob("*no*")]


def ask(served: Served, lr: bytes, ref: bytes) -> bytes | str:
    """The picture, or the status and the message of a refusal."""
    with served.client() as client:
        try:
            return upscale(client, lr, [ref], "png", 60)[0]
        except InferenceServerException as e:
            return f"{e.status()} {e.message()}"


def test_requests_at_once_and_bad_ones_among_them(served: Served, picture: Picture) -> None:
    lrs = [picture(16 + i, 20, seed=i) for i in range(20)]
    ref = picture(64, 64, 99)

    alone = [ask(served, lr, ref) for lr in lrs[:3]]
    with ThreadPoolExecutor(20) as pool:
        sent = [b"no picture" if i in (5, 11) else lr for i, lr in enumerate(lrs)]
        together = [*pool.map(lambda lr: ask(served, lr, ref), sent)]
    assert together[:3] == alone
    for i, answer in enumerate(together):
        if i in (5, 11):
            assert str(answer).startswith("400 LR is damaged or no picture")
        else:
            assert isinstance(answer, bytes), answer
    assert len({*together}) == 19
    assert ready(served)


def inputs(module: Any, *tensors: tuple[str, str, list[Any]]) -> list[Any]:
    made = []
    for name, kind, values in tensors:
        made.append(module.InferInput(name, [len(values)], kind))
        made[-1].set_data_from_numpy(np.array(values, np.object_ if kind == "BYTES" else np.int32))
    return made


def test_what_the_client_cannot_send_wrong(served: Served, picture: Picture) -> None:
    lr, ref = ("LR", "BYTES", [picture(16, 16)]), ("REFS", "BYTES", [picture(64, 64)])
    with served.client() as client:
        for tensors, words in (
            ([lr], "missing required input(s) ['REFS']"),
            ([lr, ("REFS", "BYTES", [])], "no reference photo"),
            ([("LR", "BYTES", lr[2] * 2), ref], "unexpected shape for input 'LR'"),
            ([lr, ref, ("SEED", "INT32", [-1])], "seed is -1"),
            ([lr, ("REFS", "INT32", [1])], "data-type"),
        ):
            with pytest.raises(InferenceServerException) as refused:
                client.infer("amsa", inputs(tritonclient.http, *tensors))
            assert refused.value.status() == "400"
            assert words in refused.value.message()
        result = client.infer("amsa", inputs(tritonclient.http, lr, ref))  # without the optional ones
        assert result.as_numpy("SR")[0].startswith(b"\x89PNG")
        assert result.as_numpy("NOTES").shape == (0,)


def test_full_queue_and_cancellation(served: Served, picture: Picture) -> None:
    large = inputs(tritonclient.grpc, ("LR", "BYTES", [picture(250, 250)]), ("REFS", "BYTES", [picture(800, 800)]))
    answers: list[Any] = []
    with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        began = time.monotonic()
        calls = [client.async_infer("amsa", large, lambda result, error: answers.append(error)) for _ in range(QUEUE + 2 + 6)]
        while len(answers) < 6:  # two in work, QUEUE waiting
            assert time.monotonic() < began + 20
            time.sleep(0.01)
        assert all(error.message().endswith("Exceeds maximum queue size") for error in answers)
        for call in calls:
            call.cancel()
        while len(answers) < len(calls):
            assert time.monotonic() < began + 20
            time.sleep(0.01)
    # Those in work end before their next step, and those that wait are not begun: 26 such pictures would take minutes.
    while isinstance(answer := ask(served, picture(16, 16), picture(64, 64)), str):
        assert answer.startswith("503 ")
        assert time.monotonic() < began + 20
        time.sleep(0.1)


def test_a_model_that_cannot_run_is_not_ready(tmp_path: Path) -> None:
    deploy(tmp_path / "repository")
    config = tmp_path / "repository/amsa/config.pbtxt"
    config.write_text(config.read_text().replace('"onnxruntime"', '"tensorrt"'))
    server = start(tmp_path / "repository", tmp_path)
    try:
        assert server.process.wait(START) != 0
    finally:
        server.process.kill()
        server.process.wait()
    assert "amsa build" in server.log.read_text() or "CUDA" in server.log.read_text()
