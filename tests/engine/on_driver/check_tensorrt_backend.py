"""The TensorRT backend on a CUDA driver and a TensorRT that work on the CPU: memory, order, hand-over, graphs, caps, errors.

Run by test_tensorrt_backend.py in a process of its own. Pictures must be ONNX Runtime's, bit for bit.
"""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amsa import AmsaError, Upscaler
from amsa.engine.backends import SHIPPED_MODEL
from amsa.engine.demo import load_pair, shrink
from amsa.engine.gpu import cuda, engines, graphs
from amsa.engine.gpu.arrays import _Tensor
from amsa.engine.gpu.cuda import CudaError, OutOfDeviceMemory, open_cuda
from amsa.engine.gpu.memory import Budget, DeviceArray, Pool
from amsa.engine.images import Photo
from amsa.engine.tiling import cut
from amsa.engine.video.history import FrameHistory
from amsa.manifest import FILE_NAME

from ...cuda.cpu_driver import Control
from . import tensorrt_on_cpu as stand_in

driver = ctypes.CDLL("libcuda.so.1")
control = Control()
ILLEGAL_ADDRESS = 700


@pytest.fixture(autouse=True)
def fresh_driver() -> Iterator[None]:
    control.reset()
    yield
    gc.collect()
    assert stand_in.problems == []


@pytest.fixture(scope="module")
def photos() -> tuple[Photo, Photo, Photo]:
    """An LR picture and two references, of odd sizes."""
    truth, ref = load_pair()
    lr, _ = shrink(truth)
    return Photo(lr.rgb[20:47, 30:65]), Photo(ref.rgb[70:171, 120:220]), Photo(ref.rgb[100:164, 20:84])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, used at two scales of a reference instead of five."""
    folder = Path(shutil.copytree(SHIPPED_MODEL, tmp_path_factory.mktemp("exported") / "small"))
    values = json.loads((folder / FILE_NAME).read_text())
    values["config"]["ref_scales"] = 2
    (folder / FILE_NAME).write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def on_cpu(exported: Path) -> Upscaler:
    return Upscaler(exported, "onnxruntime", threads=1, skip=0)


@pytest.fixture(scope="module")
def expected(photos: tuple[Photo, Photo, Photo], on_cpu: Upscaler) -> Photo:
    lr, *refs = photos
    return on_cpu.upscale_photo(lr, refs)


@pytest.fixture
def model(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(exported, tmp_path / "small"))


@pytest.fixture
def opened(model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Upscaler]:
    """Opens an upscaler on engines of the shipped model."""

    def open_upscaler(runtime: str = "rtx", lr: str = "16x16/32x32/64x64", **settings: Any) -> Upscaler:
        trt = stand_in.install(monkeypatch, runtime)
        stand_in.build(model, trt, runtime, lr=lr)
        return Upscaler(model, "tensorrt", **{"skip": 0, **settings})

    return open_upscaler


def same(a: Photo, b: Photo) -> bool:
    return bool(np.array_equal(a.rgb, b.rgb))


# ------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("binding", list(cuda.BINDINGS))
@pytest.mark.parametrize("runtime", ["rtx", "tensorrt"])
def test_the_picture_is_onnx_runtimes(
    runtime: str,
    binding: str,
    opened: Callable[..., Upscaler],
    photos: tuple[Photo, Photo, Photo],
    expected: Photo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if find_spec(binding.split("-")[0]) is None:
        pytest.skip(f"{binding} is not installed")
    monkeypatch.setattr(cuda, "BINDINGS", {binding: cuda.BINDINGS[binding]})
    upscaler = opened(runtime)
    assert (upscaler.backend, upscaler.device) == ("tensorrt", "CPU")
    assert binding in upscaler.kernels
    lr, *refs = photos
    assert same(upscaler.upscale_photo(lr, refs), expected)
    # 2 references at 2 scales, one tile
    counts = {stage: stand_in.ran.count(stage) for stage in set(stand_in.ran)}
    assert counts == {"encode_ref": 4, "encode_lr": 1, "match": 4, "restore": 4, "finish": 1}


def test_tiles_and_encoded_references(
    opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo], exported: Path
) -> None:
    upscaler = opened(tile=4)
    _, *refs = photos
    lr = Photo(np.random.default_rng(5).random((24, 64, 3), np.float32))  # wider than a tile with its halos
    expected = Upscaler(exported, "onnxruntime", threads=1, tile=4, skip=0).upscale_photo(lr, refs)
    encoded = [upscaler.encode_reference(ref) for ref in refs]
    assert all(isinstance(t, DeviceArray) for scale in encoded[0].scales for t in scale.tensors.values())
    stand_in.ran.clear()
    assert same(upscaler.upscale_photo(lr, encoded), expected)
    assert same(upscaler.upscale_photo(lr, encoded), expected)
    assert "encode_ref" not in stand_in.ran  # they stay on the device
    halo = upscaler.config.halo
    tiles = len(cut(24, 64, halo, side=4 + 2 * halo))
    assert tiles > 1
    assert stand_in.ran.count("finish") == 2 * tiles


def test_frames_of_a_clip(opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo], exported: Path) -> None:
    """Half of it stands still but for noise: matches come from frames before. Some references are left out."""
    lr, *refs = photos
    rng = np.random.default_rng(1)
    frames = [Photo(np.concatenate([lr.rgb[:, :17], np.roll(lr.rgb[:, 17:], 2 * i, 1)], 1)) for i in range(3)]
    frames = [Photo(np.clip(f.rgb + rng.normal(0, 0.01, f.rgb.shape), 0, 1).astype(np.float32)) for f in frames]
    on_cpu, on_gpu = Upscaler(exported, "onnxruntime", threads=1, skip=0.6), opened(skip=0.6)
    histories = FrameHistory(), FrameHistory()
    for i, frame in enumerate(frames):
        expected, found = (u.upscale_photo(frame, refs, history=h) for u, h in zip((on_cpu, on_gpu), histories, strict=True))
        assert same(found, expected)
        assert histories[0].reused == histories[1].reused
        assert (0.2 < histories[1].reused < 0.8) == (i > 0)
        assert not same(found, on_gpu.upscale_photo(frame, refs)) or i == 0


def test_a_reference_of_another_backend_is_refused(
    opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo], on_cpu: Upscaler
) -> None:
    lr, ref, _ = photos
    encoded = on_cpu.encode_reference(ref)
    with pytest.raises(AmsaError, match="on another backend; encode it again with this one"):
        opened().upscale_photo(lr, [encoded])


# ------------------------------------------------------------------------------------------------ CUDA graphs


def test_repeated_calls_are_replayed(
    opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo], expected: Photo, on_cpu: Upscaler
) -> None:
    upscaler = opened("tensorrt")
    lr, *refs = photos
    encoded = [upscaler.encode_reference(ref) for ref in refs]
    other = Photo(np.ascontiguousarray(lr.rgb[::-1]))
    wanted = on_cpu.upscale_photo(other, refs)
    for _ in range(4):
        assert same(upscaler.upscale_photo(lr, encoded), expected)
        assert same(upscaler.upscale_photo(other, encoded), wanted)
    (lane,) = upscaler.backend_in_use._idle
    assert lane._graphs.replays == 6 * 10  # all but the first call and the second
    assert control.live("graphs") == len([e for e in lane._graphs._entries.values() if e.graph])
    upscaler.close()
    assert control.live("graphs") == 0


def test_graphs_that_are_not_used_go(
    opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo], expected: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST", 8)
    upscaler = opened("tensorrt")
    lr, *refs = photos
    encoded = [upscaler.encode_reference(ref) for ref in refs]
    for _ in range(4):
        assert same(upscaler.upscale_photo(lr, encoded), expected)
    small = Photo(lr.rgb[:20, :20])
    for _ in range(4):
        upscaler.upscale_photo(small, encoded[:1])
        assert control.live("graphs") <= 8
    assert same(upscaler.upscale_photo(lr, encoded), expected)


@pytest.mark.parametrize("cause", ["enqueue", "driver"])
def test_what_cannot_be_recorded_is_told_once(
    cause: str, opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo], expected: Photo
) -> None:
    upscaler = opened("tensorrt")
    lr, *refs = photos
    encoded = [upscaler.encode_reference(ref) for ref in refs]
    if cause == "enqueue":
        stand_in.not_recordable.add("match")
    else:
        control.fail_next("cuGraphInstantiateWithFlags", 999)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            assert same(upscaler.upscale_photo(lr, encoded), expected)
    assert [str(w.message).split(":")[0] for w in caught] == ["no CUDA graphs, layers are launched one by one"]


# ------------------------------------------------------------------------------------------------ threads


def test_threads_have_lanes_of_their_own(
    opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo], expected: Photo, on_cpu: Upscaler
) -> None:
    upscaler = opened()
    lr, *refs = photos
    encoded = [upscaler.encode_reference(ref) for ref in refs]
    together = threading.Barrier(2)
    wrong: list[Any] = []

    def work(flip: bool) -> None:
        try:
            mine = Photo(np.ascontiguousarray(lr.rgb[::-1])) if flip else lr
            wanted = on_cpu.upscale_photo(mine, refs)
            together.wait()
            wrong.extend(i for i in range(3) if not same(upscaler.upscale_photo(mine, encoded), wanted))
        except BaseException as e:
            wrong.append(e)

    threads = [threading.Thread(target=work, args=(flip,)) for flip in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(upscaler.backend_in_use._idle) == 2


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("runtime", ["rtx", "tensorrt"])
def test_nothing_grows_and_all_is_given_back(
    runtime: str, opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo], expected: Photo
) -> None:
    upscaler = opened(runtime)
    lr, *refs = photos
    encoded = [upscaler.encode_reference(ref) for ref in refs]
    counts = []
    for _ in range(6):
        upscaler.upscale_photo(lr, encoded)
        gc.collect()
        counts.append([control.live(what) for what in ("allocations", "host_allocations", "events", "streams", "graphs")])
    assert counts[3:] == [counts[3]] * 3
    assert upscaler.backend_in_use.memory["held"] > 0
    upscaler.close()
    assert same(upscaler.upscale_photo(lr, encoded), expected)  # what references hold is still there
    upscaler.close()
    del encoded
    gc.collect()
    assert upscaler.backend_in_use.memory["held"] == 0
    assert [control.live(what) for what in ("allocations", "host_allocations", "events", "streams", "graphs")] == [0] * 5


def test_smaller_tiles_where_memory_is_short(opened: Callable[..., Upscaler], on_cpu: Upscaler) -> None:
    truth, ref = load_pair()
    lr, ref = Photo(np.tile(shrink(truth)[0].rgb[:24, :80], (1, 2, 1))), Photo(ref.rgb[:64, :64])
    upscaler = opened(lr="16x16/32x32/160x64")
    whole = upscaler.upscale_photo(lr, [ref])
    assert same(whole, on_cpu.upscale_photo(lr, [ref]))
    peak = upscaler.backend_in_use.memory["peak"]
    capped = opened(lr="16x16/32x32/160x64", max_memory=int(0.6 * peak))
    with pytest.warns(
        UserWarning, match=r"restoring again in tiles of (64|32|16) LR pixels: not enough device memory: the cap of"
    ):
        tiled = capped.upscale_photo(lr, [ref])
    np.testing.assert_allclose(tiled.rgb, whole.rgb, atol=1e-5)
    assert capped.backend_in_use.memory["peak"] <= 0.6 * peak


def test_a_gpu_that_is_full(opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo], expected: Photo) -> None:
    upscaler = opened()
    lr, *refs = photos
    control.set_memory(1 << 20)
    with pytest.raises(OutOfDeviceMemory, match=r"not enough device memory: the GPU has no room for [\d,]+ bytes more"):
        upscaler.upscale_photo(lr, refs)
    control.set_memory(1 << 33)
    gc.collect()
    assert control.live("allocations") == 0
    assert same(upscaler.upscale_photo(lr, refs), expected)


def test_idle_lanes_make_room(opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo]) -> None:
    upscaler = opened()
    backend: Any = upscaler.backend_in_use
    with backend.call() as first, backend.call() as second:
        first.empty((1, 1, 1000, 1000), np.float32)
        second.empty((1, 1, 10, 10), np.float32)
    backend.budget.limit = backend.budget.held + 1000
    with backend.call() as lane:
        big = lane.empty((1, 1, 700, 1000), np.float32)
        assert big.nbytes == 2_800_000
    assert backend.budget.held < backend.budget.limit


def test_the_pool_hands_out_what_came_back() -> None:
    gpu = open_cuda("cuda-bindings")
    driver.cuCtxSetCurrent(ctypes.c_void_p(int(gpu._context)))
    pool = Pool(gpu, gpu.stream(), Budget(None, lambda: None))
    a, b = pool.take(1000), pool.take(1000)
    addresses = {a.address, b.address}
    assert len(addresses) == 2
    assert a.size == 1024
    del a, b
    assert {pool.take(1020).address, pool.take(900).address} <= addresses
    assert control.live("allocations") == 2
    pool.trim()
    assert control.live("allocations") == 0


# ------------------------------------------------------------------------------------------------ arrays of others


class Producer:
    """An array on the GPU that another library is still writing, on a stream of its own."""

    def __init__(self, content: np.ndarray[Any, Any], gpu: Any) -> None:
        driver.cuCtxSetCurrent(ctypes.c_void_p(int(gpu._context)))
        self.gpu, self.stream, self.content = gpu, gpu.stream(), content
        self.address = gpu.allocate(content.nbytes)
        pinned = gpu.pinned(content.nbytes)
        pinned[:] = content.view(np.uint8).reshape(-1)
        gpu.to_device(self.address, pinned, self.stream)
        self.kept = [pinned]


class Interface(Producer):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        shape, kind = self.content.shape, self.content.dtype.str
        return {"version": 3, "shape": shape, "typestr": kind, "data": (self.address, True), "stream": int(self.stream)}


class DLPack(Producer):
    device = (2, 0)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, stream: int) -> Any:
        event = self.gpu.event(self.stream)  # the consumer's stream waits for the producer's
        self.gpu._call("cuStreamWaitEvent", stream, event.handle, 0)
        content = self.content
        shape = (ctypes.c_int64 * 4)(*content.shape)
        code, bits = (2 if content.dtype.kind == "f" else 0), 8 * content.dtype.itemsize
        tensor = _Tensor(self.address, *self.device, 4, code, bits, 1, shape, None, 0)
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self.kept += [tensor, shape]
        return make(ctypes.addressof(tensor), b"dltensor", None)


@pytest.mark.parametrize("kind", [Interface, DLPack, np.ndarray])
def test_tensors_of_other_libraries(
    kind: Any, opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo], on_cpu: Upscaler
) -> None:
    lr, ref, _ = photos
    content = np.ascontiguousarray(lr.rgb.transpose(2, 0, 1)[None], np.float32)
    wanted = on_cpu.upscale_tensor(content, [on_cpu.encode_reference(ref)])
    upscaler = opened()
    encoded = upscaler.encode_reference(ref)
    given = content if kind is np.ndarray else kind(content, upscaler.backend_in_use._cuda)
    sr = upscaler.upscale_tensor(given, [encoded])
    interface = sr.__cuda_array_interface__
    assert (interface["shape"], interface["typestr"], interface["stream"]) == (wanted.shape, "<f4", None)
    address = interface["data"][0]  # host memory in truth, and already written
    found = np.frombuffer((ctypes.c_ubyte * wanted.nbytes).from_address(address), np.float32).reshape(wanted.shape)
    assert np.array_equal(found, wanted)


def test_tensors_that_do_not_fit(opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo]) -> None:
    upscaler = opened()
    gpu: Any = upscaler.backend_in_use._cuda
    refs = [upscaler.encode_reference(photos[1])]
    elsewhere = DLPack(np.zeros((1, 3, 16, 16), np.float32), gpu)
    elsewhere.device = (1, 0)
    for array, message in (
        (elsewhere, "it must be on the GPU in use, 2:0, or a numpy array"),
        (DLPack(np.zeros((1, 3, 16, 16), np.float64), gpu), "64-bit elements"),
        (Interface(np.zeros((1, 3, 16, 16), np.float64), gpu), "the array is float64; it must be float32"),
        (Interface(np.zeros((1, 3, 16, 16), np.float16), gpu), r"LR is float16 \(1, 3, 16, 16\); it must be float32"),
        (np.zeros((1, 3, 16, 15), np.float32), "sides from 16"),
        (np.zeros((3, 16, 16), np.float32), "it must be float32"),
        ([1, 2], "list is neither a numpy array nor one on the GPU"),
    ):
        with pytest.raises(AmsaError, match=message):
            upscaler.upscale_tensor(array, refs)
    with pytest.raises(AmsaError, match="at least one reference that encode_reference returned"):
        upscaler.upscale_tensor(np.zeros((1, 3, 16, 16), np.float32), [])


# ------------------------------------------------------------------------------------------------ errors


def test_larger_than_the_engine(opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo]) -> None:
    upscaler = opened()
    ref = photos[1]
    wide = Photo(np.zeros((16, 72, 3), np.float32))
    with pytest.raises(
        AmsaError, match=r"encode_lr: lr is 1x3x16x72, and the engine takes 1x3x16x16 to 1x3x64x64 \(h 16 to 64; w 16"
    ):
        upscaler.upscale_photo(wide, [ref])
    with pytest.raises(AmsaError, match=r"encode_ref: ref is 1x3x320x320.*amsa build --shapes \.\. --ref-shapes"):
        upscaler.encode_reference(Photo(np.zeros((320, 320, 3), np.float32)))


def test_no_engines_for_this_gpu(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt = stand_in.install(monkeypatch)
    with pytest.raises(
        AmsaError, match=r"no fp32 engines for this GPU \(sm75; there: no such folder\); build them with: amsa build"
    ):
        Upscaler(model, "tensorrt")
    stand_in.build(model, trt, target="sm86+sm89")
    with pytest.raises(AmsaError, match=r"there: rtx-sm86\+sm89-fp32\)"):
        Upscaler(model, "tensorrt")
    with pytest.raises(AmsaError, match=rf"--target sm75 -o {tmp_path}/elsewhere"):
        Upscaler(model, "tensorrt", engines=tmp_path / "elsewhere")


def test_the_nearest_engines_are_taken(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = stand_in.install(monkeypatch)
    for target, name in (("sm75+sm86", "rtx-sm75+sm86-fp32"), ("sm75", "rtx-sm75-fp32"), ("native", "rtx-native-fp32")):
        stand_in.build(model, trt, target=target)
        assert engines.find_engines(model, "fp32", "sm75").path.name == name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"onnx": "0" * 64}, "built from another encode_ref.onnx than that of"),
        ({"plugins": "0" * 64}, "its plugins are of another version of amsa"),
        ({"runtime": "tensorrt_rtx 1.6.0"}, r"built by tensorrt_rtx 1\.6\.0, and this is tensorrt_rtx 1\.7"),
    ],
)
def test_engines_that_are_not_of_this_model(
    changed: dict[str, str], message: str, model: Path, monkeypatch: pytest.MonkeyPatch, photos: tuple[Photo, Photo, Photo]
) -> None:
    stand_in.build(model, stand_in.install(monkeypatch), **changed)
    with pytest.raises(AmsaError, match=rf"{message}.*build it again: amsa build .* --target sm75"):
        Upscaler(model, "tensorrt").encode_reference(photos[1])


def test_a_damaged_engine(opened: Callable[..., Upscaler], model: Path, photos: tuple[Photo, Photo, Photo]) -> None:
    upscaler = opened()
    path = model.parent / "small.engines" / "rtx-sm75-fp32" / "encode_ref.engine"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AmsaError, match="checksum differs"):
        upscaler.encode_reference(photos[1])
    path.unlink()
    with pytest.raises(AmsaError, match=r"encode_ref.engine: cannot be read"):
        upscaler.encode_reference(photos[1])


def test_tensorrt_fails(opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo], expected: Photo) -> None:
    upscaler = opened()
    lr, *refs = photos
    stand_in.failing["restore"] = "no kernel\nimage"
    with pytest.raises(AmsaError, match=r"^restore failed on the GPU: no kernel image$"):
        upscaler.upscale_photo(lr, refs)
    stand_in.failing.clear()
    gc.collect()
    assert control.live("allocations") == 0  # the lane that failed is gone
    assert same(upscaler.upscale_photo(lr, refs), expected)


def test_a_gpu_that_fails_says_so(opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo]) -> None:
    upscaler = opened()
    lr, *refs = photos
    control.fail_next("cuMemcpyDtoHAsync", ILLEGAL_ADDRESS)
    with pytest.raises(CudaError, match=r"^CUDA: cuMemcpyDtoHAsync: CUDA_ERROR_ILLEGAL_ADDRESS$"):
        upscaler.upscale_photo(lr, refs)


def test_matching_without_a_kernel(model: Path) -> None:
    with pytest.raises(AmsaError, match="matching 'exact' has no CUDA kernel"):
        Upscaler(model, "tensorrt", matching="exact")


# ------------------------------------------------------------------------------------------------ compiled kernels


def test_compiled_kernels_are_kept(
    opened: Callable[..., Upscaler], photos: tuple[Photo, Photo, Photo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().encode_reference(photos[1])
    (kept,) = (tmp_path / "cache" / "amsa").glob("rtx-kernels-*")
    assert kept.read_bytes() == b"k"
    opened().encode_reference(photos[1])
    assert kept.read_bytes() == b"kk"  # read again, and added to
    monkeypatch.setattr(stand_in.RuntimeCache, "refuse", True)
    with pytest.warns(UserWarning, match="not a cache of this driver and GPU; kernels are compiled again"):
        opened().encode_reference(photos[1])
