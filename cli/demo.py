"""`amsa demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..errors import AmsaError
from .options import Model, Threads
from .terminal import out, print_engines, print_stats, progress_bar, say_backend

if TYPE_CHECKING:
    from ..engine.images import Photo
    from ..engine.metrics import Comparison


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures and engines.")] = Path("out/demo"),
    model: Model = None,
    threads: Threads = None,
) -> None:
    """Upscale a real photo with a second view of the same scene, lay the results side by side, and build TensorRT engines."""
    from ..engine.demo import load_pair, shrink
    from ..engine.images import Photo, write_photo
    from ..engine.metrics import side_by_side
    from ..engine.upscaler import Stats, Upscaler

    truth, ref = load_pair()
    lr, bicubic = shrink(truth)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise AmsaError(f"{output}: cannot be made a folder ({e.strerror}); choose another with --output") from e
    upscaler = Upscaler(model, threads=threads)
    say_backend(upscaler)
    out.print(
        f"LR {lr.width}x{lr.height} (the left view, shrunk to a quarter), reference {ref.width}x{ref.height} (the right view)"
    )
    measured = Stats()
    begin = time.perf_counter()
    with progress_bar() as progress:
        sr = upscaler.upscale_photo(lr, [ref], progress=progress, stats=measured)
    print_stats(measured, time.perf_counter() - begin)
    _print_comparisons(truth, {"bicubic": bicubic, "amsa": sr})
    name = "amsa" if upscaler.trained else "amsa (untrained weights)"
    panels = [("LR", lr), ("bicubic", bicubic), (name, sr), ("reference", ref), ("truth", truth)]
    for file, photo in (("lr", lr), ("bicubic", bicubic), ("sr", sr), ("reference", ref), ("truth", truth)):
        write_photo(output / f"{file}.png", photo)
    write_photo(output / "side_by_side.png", Photo(side_by_side([(label, photo.rgb) for label, photo in panels])))
    out.print(f"pictures: {output}/sr.png, {output}/side_by_side.png")
    _demo_engines(output / "engines", lr, ref)


def _demo_engines(output: Path, lr: Photo, ref: Photo) -> None:
    """Build the shipped model's engines for SM 7.5 into a folder, and with a GPU those for it, and run them. Where TensorRT-RTX
    is not installed, say how to get it."""
    from importlib.util import find_spec

    from ..engine.backends import SHIPPED_ENGINE_MODEL
    from ..engine.gpu.cuda import CudaError, open_cuda
    from ..engine.metrics import compare_pictures
    from ..engine.tensorrt_build import NATIVE, build_engines
    from ..engine.upscaler import Upscaler

    if find_spec("tensorrt_rtx") is None:
        out.print("TensorRT engines: not built, since TensorRT-RTX is not installed; to build them: pip install 'amsa[rtx]'")
        return
    with progress_bar() as progress:
        built = build_engines(SHIPPED_ENGINE_MODEL, ["sm75"], output=output, progress=progress)
    print_engines(built)
    try:
        gpu = open_cuda()
    except CudaError as e:
        out.print(f"Engines for the RTX 20 series, built and checked; to be run on such a card: here, {e}")
        return
    with progress_bar() as progress:
        build_engines(SHIPPED_ENGINE_MODEL, [NATIVE], output=output, progress=progress)
    upscaler = Upscaler(SHIPPED_ENGINE_MODEL, "tensorrt", engines=output)
    say_backend(upscaler)
    encoded = upscaler.encode_reference(ref)
    seconds = []
    for _ in range(20):  # the first ones compile and warm up
        begin = time.perf_counter()
        sr = upscaler.upscale_photo(lr, [encoded])
        seconds.append(time.perf_counter() - begin)
    expected = Upscaler(SHIPPED_ENGINE_MODEL, "onnxruntime").upscale_photo(lr, [ref])
    parity = compare_pictures(sr.rgb, expected.rgb)
    median = 1e3 * sorted(seconds[10:])[5]
    out.print(f"{gpu.device}: {median:.1f} ms a picture; {parity.psnr_rgb:.1f} dB to the same model on the CPU")


def _print_comparisons(truth: Photo, pictures: dict[str, Photo]) -> None:
    from ..engine.metrics import compare_pictures

    table = Table("", "PSNR-Y", "SSIM-Y", "PSNR-RGB", title="against the true picture (border 4)", title_justify="left")
    for name, photo in pictures.items():
        c: Comparison = compare_pictures(photo.rgb, truth.rgb)
        table.add_row(name, f"{c.psnr_y:.2f}", f"{c.ssim_y:.4f}", f"{c.psnr_rgb:.2f}")
    out.print(table)
