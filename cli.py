"""The command line: a thin shell over the Python API. Heavy imports happen inside the commands."""

from __future__ import annotations

import io
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ._version import __version__
from .errors import AmsaError

if TYPE_CHECKING:
    from .engine.images import Photo
    from .engine.metrics import Comparison
    from .engine.stage_comparison import TensorDifference
    from .engine.tensorrt_build import BuiltEngine
    from .engine.upscaler import Progress, Stats, Upscaler
    from .training.loop import Progress as StageProgress
    from .training.recipe import Recipe

app = typer.Typer(
    name="amsa",
    help="Reference-based super-resolution: a blurry photo and sharp photos of something similar become a x4 picture.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

Model = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="Model folder, .amsa file or .safetensors checkpoint; default: the shipped one."),
]
BackendName = Annotated[str, typer.Option("--backend", help="auto, onnxruntime, torch or tensorrt.")]
Matching = Annotated[
    str, typer.Option("--matching", help="patchmatch; exact: compare with all positions; auto: exact where that is as fast.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the initial matches: equal seeds, equal pictures.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads to compute with; default: one per core.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command()
def upscale(
    lr: Annotated[Path, typer.Argument(help="The low-resolution photo, at least 16 pixels a side.")],
    refs: Annotated[list[Path], typer.Argument(help="Sharp photos of something similar, at least 64 pixels a side.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the x4 picture; the suffix chooses the format.")],
    model: Model = None,
    backend: BackendName = "auto",
    matching: Matching = "patchmatch",
    seed: Seed = 0,
    threads: Threads = None,
    skip: Annotated[
        float | None,
        typer.Option(
            "--skip", help="Weight that references may have together and still not be restored, 0 to 1; 0: restore all."
        ),
    ] = None,
    engines: Annotated[
        Path | None, typer.Option("--engines", help="tensorrt: folder that `amsa build -o` wrote to; default: MODEL.engines.")
    ] = None,
    max_device_memory: Annotated[
        int | None,
        typer.Option("--max-device-memory", min=1, help="tensorrt: megabytes that pictures, features and scratch may take."),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print seconds per stage and peak memory.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upscale a photo x4 with the texture of reference photos."""
    from .engine.images import check_format, check_writable, read_photo, write_photo
    from .engine.upscaler import Stats, Upscaler

    check_writable(output)
    _check_not_an_input(output, lr, *refs)
    begin = time.perf_counter()
    lr_photo = read_photo(lr)
    check_format(output, lr_photo, 4)
    ref_photos = [read_photo(r) for r in refs]
    cap = None if max_device_memory is None else max_device_memory * 1_000_000
    upscaler = Upscaler(model, backend, threads, matching=matching, skip=skip, engines=engines, max_device_memory=cap)
    if not as_json:
        _say_backend(upscaler)
    measured = Stats()
    wanted = measured if stats or as_json else None  # measuring makes a GPU wait after every stage
    with _progress(as_json) as progress:
        sr = upscaler.upscale_photo(
            lr_photo, ref_photos, seed=seed, names=[str(p) for p in (lr, *refs)], progress=progress, stats=wanted
        )
    write_photo(output, sr)
    total = time.perf_counter() - begin
    if as_json:
        _print_json(
            {
                "output": str(output),
                "width": sr.width,
                "height": sr.height,
                "backend": upscaler.backend,
                "trained": upscaler.trained,
                "seconds": {**measured.seconds, "total": total},
                "peak_memory_mb": _peak_memory_mb(),
            }
        )
        return
    out.print(f"{output}: {sr.width}x{sr.height} from {lr_photo.width}x{lr_photo.height} in {total:.1f} s")
    if stats:
        _print_stats(measured, total)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures and engines.")] = Path("out/demo"),
    model: Model = None,
    threads: Threads = None,
) -> None:
    """Upscale a real photo with a second view of the same scene, lay the results side by side, and build TensorRT engines."""
    from .engine.demo import load_pair, shrink
    from .engine.images import Photo, write_photo
    from .engine.metrics import side_by_side
    from .engine.upscaler import Stats, Upscaler

    truth, ref = load_pair()
    lr, bicubic = shrink(truth)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise AmsaError(f"{output}: cannot be made a folder ({e.strerror}); choose another with --output") from e
    upscaler = Upscaler(model, threads=threads)
    _say_backend(upscaler)
    out.print(
        f"LR {lr.width}x{lr.height} (the left view, shrunk to a quarter), reference {ref.width}x{ref.height} (the right view)"
    )
    measured = Stats()
    begin = time.perf_counter()
    with _progress() as progress:
        sr = upscaler.upscale_photo(lr, [ref], progress=progress, stats=measured)
    _print_stats(measured, time.perf_counter() - begin)
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

    from .engine.backends import SHIPPED_ENGINE_MODEL
    from .engine.gpu.cuda import CudaError, open_cuda
    from .engine.metrics import compare_pictures
    from .engine.tensorrt_build import NATIVE, build_engines
    from .engine.upscaler import Upscaler

    if find_spec("tensorrt_rtx") is None or find_spec("onnx") is None:
        out.print("TensorRT engines: not built, since TensorRT-RTX is not installed; to build them: pip install 'amsa[rtx]'")
        return
    with _progress() as progress:
        built = build_engines(SHIPPED_ENGINE_MODEL, ["sm75"], output=output, progress=progress)
    _print_engines(built)
    try:
        gpu = open_cuda()
    except CudaError as e:
        out.print(f"Engines for the RTX 20 series, built and checked; to be run on such a card: here, {e}")
        return
    with _progress() as progress:
        build_engines(SHIPPED_ENGINE_MODEL, [NATIVE], output=output, progress=progress)
    upscaler = Upscaler(SHIPPED_ENGINE_MODEL, "tensorrt", engines=output)
    _say_backend(upscaler)
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


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="A .safetensors checkpoint; or small, paper, published: untrained weights.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Model folder, .amsa file, or with --single-file an .onnx file.")
    ],
    single_file: Annotated[int | None, typer.Option("--single-file", help="Compose one graph for this many references.")] = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32, or fp16: convolutions and features in float16.")] = "fp32",
    no_bodies: Annotated[
        bool,
        typer.Option(
            "--no-bodies", help="Leave out the ops' function bodies, for trtexec: then ONNX Runtime needs amsa's CPU kernels."
        ),
    ] = False,
    uint8: Annotated[
        bool, typer.Option("--uint8", help="With --single-file: pictures in and out are uint8, RGB 0 to 255, not float32 0 to 1.")
    ] = False,
    quantization: Annotated[
        Path | None, typer.Option("--quantization", help="Precision file of `amsa calibrate`: which layers are int8 or float32.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of untrained weights.")] = 0,
) -> None:
    """Export a checkpoint to ONNX, then compare ONNX Runtime with PyTorch on a sample."""
    _require_extra("export", "torch", "onnx", "onnxscript", "safetensors")
    from . import export as exporter
    from .manifest import ModelFolder

    if single_file is None:
        if uint8:
            raise AmsaError("--uint8: amsa feeds a folder's graphs float32 pictures; for one graph of uint8 add --single-file N")
        exporter.check_target(output)
    layers = None
    if quantization is not None:
        if single_file is not None:
            raise AmsaError("--quantization is for a folder's graphs; leave out --single-file")
        layers = exporter.read_precision(quantization)
    model, trained = exporter.load_network(checkpoint, seed, precision, layers.float32 if layers else ())
    full = exporter.load_network(checkpoint, seed)[0] if layers and precision != "fp32" else model
    if not trained:
        err.print(f"note: the weights of {checkpoint} are untrained")
    if single_file is not None:
        with err.status(f"exporting {output} for {single_file} references"):
            exporter.export_single_file(model, output, single_file, function_bodies=not no_bodies, uint8=uint8)
        with err.status("comparing with PyTorch"):
            file = exporter.check_single_file(model, output, (40, 48), (160, 192))
        size = f"{output.stat().st_size / 1e6:.1f} MB"
        out.print(f"{output}: {size}; largest difference to PyTorch {file.difference:.1e}, PSNR {file.psnr:.1f} dB")
        return
    with err.status("exporting") as status:
        exporter.export_folder(
            model, trained, output, status.update, function_bodies=not no_bodies, quantization=layers, full=full
        )
    folder = ModelFolder.open(output)
    with err.status("comparing with PyTorch"):
        # The smallest sample whose four levels all have something to find; published models want one common size.
        parity = exporter.check_parity(full, folder, (40, 48), (160, 192))
    table = Table("graph", "MB", "largest difference to PyTorch", "of at most", "PSNR", "other matches", title=str(output))
    for p in parity:
        size = f"{folder.manifest.graphs[p.stage].size / 1e6:.2f}"
        table.add_row(p.stage, size, f"{p.difference:.1e}", f"{p.scale:.1e}", f"{p.psnr:.1f}", f"{p.other_matches:.2%}")
    out.print(table)
    if layers:
        kept = len(folder.manifest.float32_layers)
        out.print(f"{len(layers.int8)} layers in int8, {kept} kept in float32; compared with PyTorch in float32")


@app.command()
def calibrate(
    model: Annotated[Path, typer.Argument(help="Model folder or .amsa file, exported as fp32.")],
    data: Annotated[
        list[Path], typer.Option("--data", help="Photos, or pairs as for `amsa evaluate`, to take ranges from; may be repeated.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Precision file to write (.json), for export --quantization.")],
    held_out: Annotated[
        list[Path] | None, typer.Option("--held-out", help="Photos or pairs to measure on; default: other crops of --data.")
    ] = None,
    method: Annotated[str, typer.Option("--method", help="How ranges are found: max, percentile, entropy or mse.")] = "mse",
    max_drop: Annotated[float, typer.Option("--max-drop", help="dB of PSNR-Y against the truth that int8 may cost.")] = 0.05,
    crops: Annotated[int, typer.Option("--crops", help="Crops of 160x160 to take ranges from.")] = 200,
    held_out_crops: Annotated[int, typer.Option("--held-out-crops", help="Crops to measure every block on.")] = 12,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a plot of the blocks' sensitivity (.png).")] = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Find the layers that can be int8, with their ranges, and those that float16 cannot hold. Minutes for the small model."""
    _require_extra("export", "torch", "onnx")
    from .calib import report
    from .calib.run import calibrate as run

    if plot is not None:
        _require_extra("evaluate", "matplotlib")
        report.check_plot(plot)
    with err.status("calibrating") as status:
        found = run(
            model,
            data,
            output,
            held_out=held_out or (),
            method=method,
            max_drop=max_drop,
            crops=crops,
            held_out_crops=held_out_crops,
            threads=threads,
            say=status.update,
        )
    if plot is not None:
        report.write_plot(found, plot)
    if as_json:
        _print_json(json.loads(found.precision.to_json()))
        return
    table = Table(*report.HEADINGS, title=f"{output}: blocks in the order in which they were tried", title_justify="left")
    for row in report.rows(found):
        table.add_row(*row)
    out.print(table, width=max(out.width, 110))  # names of blocks are long
    for line in report.summary(found):
        out.print(line)


@app.command()
def build(
    model: Annotated[Path, typer.Argument(help="Exported model folder or .amsa file.")],
    target: Annotated[
        list[str],
        typer.Option(
            "--target",
            help="sm75 (RTX 20), sm80, sm86, sm89, sm120, sm121; several in one engine, as sm86+sm89+sm120; or native. "
            "May be repeated.",
        ),
    ],
    runtime: Annotated[
        str, typer.Option("--runtime", help="rtx: TensorRT-RTX, builds with no GPU; tensorrt: classic, for this machine's GPU.")
    ] = "rtx",
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32 or fp16, to insist on; a model is what it was exported as.")
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option("--shapes", help="Smallest/usual/largest LR picture, multiples of 8; default: 16x16/128x128/512x512."),
    ] = None,
    ref_shapes: Annotated[
        str | None,
        typer.Option("--ref-shapes", help="The same of a reference's matching grid (photo / 4); default: 8x8/128x128/512x512."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for a folder of engines per target; default: MODEL.engines.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build TensorRT engines of a model, and check that each is what was asked for. Those up to date are left alone."""
    from .engine.engine_shapes import LR_SIZES, REF_SIZES
    from .engine.tensorrt_build import build_engines

    with _progress(as_json) as progress:
        built = build_engines(
            model,
            target,
            runtime=runtime,
            precision=precision,
            lr_sizes=shapes or LR_SIZES,
            ref_sizes=ref_shapes or REF_SIZES,
            output=output,
            progress=progress,
        )
    if as_json:
        _print_json({"engines": [engine.as_dict() for engine in built]})
        return
    _print_engines(built)
    for engine in built:
        if engine.reason:
            out.print(f"{engine.path}: {engine.reason}")


@app.command()
def convert(
    files: Annotated[list[Path], typer.Argument(help="The published .pth files, in any order; or a checkpoint.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write (.safetensors).")],
    fp16: Annotated[bool, typer.Option("--fp16", help="Round the weights to float16: half the size.")] = False,
) -> None:
    """Convert the published checkpoints (feature extraction, restoration, VGG19) to one file; or a checkpoint to --fp16."""
    _require_extra("export", "torch", "safetensors")
    from .model.checkpoints import convert_published, load_checkpoint, save_checkpoint

    if output.suffix != ".safetensors":
        raise AmsaError(f"{output}: a checkpoint's name must end in .safetensors")
    _check_not_an_input(output, *files)
    if len(files) == 1 and files[0].suffix == ".safetensors":
        model, metadata = load_checkpoint(files[0])
    else:
        model, metadata = convert_published(files), {"trained": True}
    save_checkpoint(output, model, metadata, fp16)
    c = model.config
    out.print(f"{output}: {c.variant}, {c.channels[0]} channels, {c.blocks[0]} blocks, {c.groups} groups")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Model folder, .amsa file, checkpoint, engine, or folder of engines.")],
    as_json: AsJson = False,
) -> None:
    """Say what a model or an engine contains and what it needs."""
    from .engine.inspection import inspect_path

    report = inspect_path(path)
    if as_json:
        _print_json(report.as_dict())
        return
    out.print(report.title)
    table = Table("graph", "MB", "tensors")
    for row in report.graphs:
        table.add_row(row.name, f"{row.bytes / 1e6:.2f}", row.signature)
    if report.graphs:
        out.print(table)
    for line in report.needs:
        out.print(line)
    for key, value in report.config.items():
        out.print(f"  {key} = {value}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A picture, or a model.")],
    b: Annotated[Path, typer.Argument(help="Another picture of the same size, or another model.")],
    lr: Annotated[Path | None, typer.Option("--lr", help="For two models: the LR photo to run them on.")] = None,
    ref: Annotated[list[Path] | None, typer.Option("--ref", help="For two models: a reference photo; may be repeated.")] = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Two models of one network: compare every stage, given the first model's inputs.")
    ] = False,
    backend_a: Annotated[str, typer.Option("--backend-a", help="What runs the first model, as for upscale.")] = "auto",
    backend_b: Annotated[str, typer.Option("--backend-b", help="What runs the second one.")] = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a picture of the difference.")] = None,
    border: Annotated[int, typer.Option("--border", min=0, help="Pixels left out on each side of PSNR and SSIM.")] = 4,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Compare two pictures, or what two models make of the same photos: PSNR and SSIM (Y and RGB), largest difference.

    With --stages also every stage of two models, backends or precisions; exit code 1 names the first that is over its bound.
    """
    from .engine.images import Photo, check_writable, read_photo, write_photo
    from .engine.metrics import compare_pictures, difference_picture

    if output is not None:
        check_writable(output)
        _check_not_an_input(output, a, b, lr, *(ref or ()))
    differences: list[TensorDifference] = []
    if lr is not None or ref:
        if lr is None or not ref:
            raise AmsaError("two models are compared on photos: give both --lr and --ref")
        photos = read_photo(lr), [read_photo(r) for r in ref]
        names = [str(p) for p in (lr, *ref)]
        first, second = _open_model(a, backend_a, threads), _open_model(b, backend_b, threads)
        with _progress(as_json) as progress:
            pictures = [u.upscale_photo(*photos, seed=seed, names=names, progress=progress) for u in (first, second)]
            if stages:
                from .engine.stage_comparison import compare_stages

                differences = compare_stages(first, second, *photos, seed=seed, names=names, progress=progress)
    else:
        for path in (a, b):
            if path.is_dir() or path.suffix in (".safetensors", ".amsa"):
                raise AmsaError(f"{path} is a model; to compare models add --lr and --ref photos to run them on")
        if stages:
            raise AmsaError("--stages compares two models; add --lr and --ref photos to run them on")
        pictures = [read_photo(a), read_photo(b)]
    sizes = [f"{p.width}x{p.height}" for p in pictures]
    if sizes[0] != sizes[1]:
        raise AmsaError(f"{a} is {sizes[0]} and {b} is {sizes[1]}; give pictures of one size")
    comparison = compare_pictures(pictures[0].rgb, pictures[1].rgb, border)
    if output is not None:
        difference, gain = difference_picture(pictures[0].rgb, pictures[1].rgb)
        write_photo(output, Photo(difference))
    over = next((d for d in differences if not d.holds), None)
    if as_json:
        _print_json(comparison.as_dict() | ({"stages": [d.as_dict() for d in differences]} if stages else {}))
    else:
        if differences:
            _print_differences(differences)
        table = Table("", "PSNR", "SSIM", title=f"{a} against {b} (border {border})", title_justify="left")
        table.add_row("Y", f"{comparison.psnr_y:.3f}", f"{comparison.ssim_y:.4f}")
        table.add_row("RGB", f"{comparison.psnr_rgb:.3f}", f"{comparison.ssim_rgb:.4f}")
        out.print(table)
        out.print(f"difference of 8-bit levels: largest {comparison.max_difference:.3f}, mean {comparison.mean_difference:.4f}")
        if output is not None:
            out.print(f"{output}: absolute difference, x{gain:.0f}")
    if over is not None:
        err.print(f"{over.stage}: {over.tensor} is the first over its bound: {over.largest:.1e} of at most {over.bound:.1e}")
        raise typer.Exit(1)


@app.command()
def evaluate(
    data: Annotated[list[Path], typer.Argument(help="Folders of pictures and references, or a CSV file; see docs/datasets.md.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("out/evaluation"),
    model: Model = None,
    backend: BackendName = "auto",
    kind: Annotated[
        str, typer.Option("--kind", help="auto, cufed, cufed5, sun80, wrsr, urban100, manga109, pairs or photos.")
    ] = "auto",
    experiment: Annotated[str, typer.Option("--experiment", help="table1, relevance, misalignment or robustness.")] = "table1",
    refs: Annotated[int, typer.Option("--refs", min=1, help="References of a picture to use, where it has as many.")] = 1,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first pictures of each dataset.")] = None,
    seed: Seed = 0,
    threads: Threads = None,
    lpips: Annotated[
        Path | None, typer.Option("--lpips", help="Measure LPIPS, too, with this network; see training/evaluation/lpips.py.")
    ] = None,
    plots: Annotated[bool, typer.Option("--plots", help="Draw the gains and the curve.")] = False,
    save_pictures: Annotated[bool, typer.Option("--save-pictures", help="Keep the upscaled pictures.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only read the data, and say what is wrong with it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Shrink pictures, upscale them with references, and score them as the paper does. Exit code 1: a picture failed."""
    from .training.evaluation import report as reports
    from .training.evaluation import run

    with _progress(as_json) as progress:
        if check:
            datasets = run.check(data, kind, progress)
        else:
            report = run.evaluate(
                data,
                output,
                model=model,
                backend=backend,
                threads=threads,
                kind=kind,
                experiment=experiment,
                refs=refs,
                limit=limit,
                seed=seed,
                lpips=lpips,
                plots=plots,
                save_pictures=save_pictures,
                progress=progress,
            )
            datasets = report["datasets"]
    if as_json:
        _print_json({"datasets": datasets} if check else reports.finite(report))
    elif check:
        out.print(reports.checked(datasets))
    else:
        out.print(f"{reports.to_markdown(report)}\n{output}/report.md, {output}/report.json")
    if not check and report["interrupted"]:
        raise typer.Exit(130)
    if any(d["problems"] for d in datasets) or (not check and report["failures"]):
        raise typer.Exit(1)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="small, paper, published, or a TOML file; see training/recipe.py for every field.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; where it has a state, the run goes on.")],
    photos: Annotated[
        list[Path] | None, typer.Option("--photos", help="Folder of photos; references are made from them.")
    ] = None,
    views: Annotated[list[Path] | None, typer.Option("--views", help="Folder of photos of one scene.")] = None,
    pairs: Annotated[list[Path] | None, typer.Option("--pairs", help="CUFED's layout, or a CSV file hr,ref; see docs.")] = None,
    validation: Annotated[list[Path] | None, typer.Option("--validation", help="Views or pairs that choose the weights.")] = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="Checkpoint (.safetensors) that the first stage begins with.")
    ] = None,
    until: Annotated[int | None, typer.Option("--until", min=1, help="Stop at this step of the stage in progress.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that make samples; 0: this one.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    threads: Threads = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")] = False,
) -> None:
    """Train a network by a recipe, stage by stage. Start it with torchrun to use several GPUs or machines."""
    _require_extra("train", "torch", "torchvision", "safetensors")
    import torch

    from .training import distributed
    from .training.recipe import read_recipe
    from .training.run import Sources
    from .training.run import train as run

    if device not in ("auto", "cpu", "cuda"):
        raise AmsaError(f"--device {device} does not exist; choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise AmsaError("--device cuda: torch finds no GPU here; use --device cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    stages = read_recipe(recipe)
    sources = Sources(photos or (), views or (), pairs or (), validation or ())
    with distributed.processes(device) as chosen, _training_progress() as report:
        kept = run(
            stages,
            sources,
            output,
            init=init,
            until=until,
            workers=workers,
            device=chosen,
            tensorboard=tensorboard,
            say=err.print,
            report=report if distributed.rank() == 0 else None,
        )
        if distributed.rank() == 0:
            out.print(f"weights: {kept}")


@app.command()
def complexity(
    model: Annotated[str, typer.Argument(help="Model folder, .amsa file or checkpoint; or small, paper, published.")],
    lr: Annotated[str, typer.Option("--lr", help="Size of the LR picture, WIDTHxHEIGHT.")],
    ref: Annotated[str, typer.Option("--ref", help="Size of the reference photo, WIDTHxHEIGHT.")],
) -> None:
    """Count the multiply-accumulates of every stage for these sizes, as a Markdown table. Nothing is computed."""
    _require_extra("export", "torch")
    from .config import VARIANTS, AMSAConfig
    from .engine.inspection import inspect_model
    from .training.evaluation.complexity import parse_size, table

    untrained = model in VARIANTS and not Path(model).is_file()
    config = VARIANTS[model]() if untrained else AMSAConfig.from_dict(inspect_model(model).config)
    out.print(table(config, parse_size(lr), parse_size(ref)))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check what works on this machine, and say how to mend what does not. Exit code 1: something is broken."""
    try:
        from .engine import doctor as checks
    except ImportError as e:
        raise AmsaError(f"{e}; amsa is not installed as a whole, so install it again: pip install --force-reinstall amsa") from e

    findings: list[checks.Finding] = []
    for found in checks.examine_machine():
        if not as_json:
            if not findings or found.section != findings[-1].section:
                out.print(found.section)
            mend = f"; mend: {found.mend}" if found.mend else ""
            out.print(f"  {found.state:<7} {found.name:<28} {found.text}{mend}")
        findings.append(found)
    if as_json:
        _print_json({"findings": [asdict(found) for found in findings], "abilities": checks.abilities(findings)})
    else:
        out.print(checks.summary(findings))
    if any(found.state == checks.BROKEN for found in findings):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: AmsaError and lack of memory are one line and exit code 2; a bug of ours is a traceback and code 1."""
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show must not stop anything
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_args, **_kwargs: err.print(f"note: {' '.join(str(message).split())}")
    try:
        app()
    except AmsaError as e:
        _fail(str(e))
    except MemoryError:
        _fail("not enough memory for pictures of this size; use smaller photos or close other programs")
    except KeyboardInterrupt:
        err.print("interrupted; nothing was written")
        sys.exit(130)


def _fail(message: str) -> None:
    err.print(f"error: {' '.join(message.split())}")
    sys.exit(2)


def _check_not_an_input(output: Path, *inputs: Path | None) -> None:
    for path in inputs:
        if path is not None and output.exists() and path.exists() and output.samefile(path):
            raise AmsaError(f"{output} is also an input; choose another output")


def _require_extra(extra: str, *modules: str) -> None:
    from importlib.util import find_spec

    if missing := [m for m in modules if find_spec(m) is None]:
        raise AmsaError(f"this command needs {', '.join(missing)}; install with: pip install 'amsa[{extra}]'")


def _open_model(path: Path, backend: str, threads: int | None) -> Upscaler:
    from .engine.upscaler import Upscaler

    upscaler = Upscaler(path, backend, threads)
    err.print(f"{path}: {upscaler.backend} backend ({upscaler.device})")
    return upscaler


def _say_backend(upscaler: Upscaler) -> None:
    err.print(f"backend: {upscaler.backend} ({upscaler.device}; {upscaler.kernels})")
    if not upscaler.trained:
        err.print("note: these weights are untrained: the picture shows the pipeline at work, not added detail")


@contextmanager
def _progress(quiet: bool = False) -> Iterator[Progress | None]:
    """A progress bar on a terminal; nothing where output is piped or meant for machines."""
    if quiet or not err.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    with Bar(BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=err, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


@contextmanager
def _training_progress() -> Iterator[Callable[[Recipe, StageProgress], None]]:
    """A bar with the time left on a terminal; otherwise a line whenever values are logged."""
    if err.is_terminal:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        with Bar(BarColumn(), TextColumn("{task.description}"), console=err) as bar:
            task = bar.add_task("", total=None)
            yield lambda recipe, p: bar.update(task, completed=p.step, total=p.steps, description=_describe(recipe, p))
        return
    shown: dict[str, float] = {}

    def line(recipe: Recipe, p: StageProgress) -> None:
        nonlocal shown
        if p.values is not shown:
            shown = p.values
            err.print(_describe(recipe, p))

    yield line


def _describe(recipe: Recipe, p: StageProgress) -> str:
    hours, minutes = divmod(round(p.seconds_left / 60), 60)
    values = " ".join(f"{name} {value:.4g}" for name, value in p.values.items() if value)
    return f"{recipe.folder} {p.step}/{p.steps}, {hours}:{minutes:02d} h left {values}"


def _peak_memory_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _print_stats(stats: Stats, total: float) -> None:
    table = Table("stage", "seconds")
    for stage, seconds in stats.seconds.items():
        table.add_row(stage, f"{seconds:.2f}")
    table.add_row("total", f"{total:.2f}")
    out.print(table)
    out.print(f"restored from {stats.restored} of {stats.matched} references at a scale; the others weigh little")
    out.print(f"peak memory: {_peak_memory_mb():.0f} MB")


def _print_differences(differences: list[TensorDifference]) -> None:
    table = Table("stage", "tensor", "largest", "of at most", "mean", "PSNR", "equal", title="every stage on the same inputs")
    for d in differences:
        equal = "" if d.equal != d.equal else f"{d.equal:.2%}"
        psnr = "" if d.psnr != d.psnr else f"{d.psnr:.1f}"
        over = "" if d.holds else " !"
        table.add_row(d.stage, d.tensor, f"{d.largest:.1e}{over}", f"{d.bound:.1e}", f"{d.mean:.1e}", psnr, equal)
    out.print(table)
    out.print("largest and mean: shares of the tensor's largest value; for match: positions with another score, score lost")


def _print_comparisons(truth: Photo, pictures: dict[str, Photo]) -> None:
    from .engine.metrics import compare_pictures

    table = Table("", "PSNR-Y", "SSIM-Y", "PSNR-RGB", title="against the true picture (border 4)", title_justify="left")
    for name, photo in pictures.items():
        c: Comparison = compare_pictures(photo.rgb, truth.rgb)
        table.add_row(name, f"{c.psnr_y:.2f}", f"{c.ssim_y:.4f}", f"{c.psnr_rgb:.2f}")
    out.print(table)


def _print_engines(built: list[BuiltEngine]) -> None:
    """A table per folder of engines."""
    headings = ("stage", "layers", "plugins", "engine MB", "scratch MB", "build s", "")
    for folder in dict.fromkeys(engine.path.parent for engine in built):
        table = Table(*headings, title=str(folder), title_justify="left", pad_edge=False)
        for engine in built:
            if engine.path.parent == folder:
                s = engine.sidecar
                megabytes = f"{s.size / 1e6:.2f}", f"{s.scratch / 1e6:.0f}"
                state = "built" if engine.reason else "up to date"
                table.add_row(s.key.stage, str(s.layers), str(s.plugins), *megabytes, f"{s.seconds:.1f}", state)
        out.print(table)


def _print_json(value: dict[str, Any]) -> None:
    finite = {k: None if isinstance(v, float) and v == float("inf") else v for k, v in value.items()}
    sys.stdout.write(json.dumps(finite) + "\n")
