"""`amsa compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..errors import AmsaError
from .options import AsJson, Seed, Threads
from .terminal import check_not_an_input, err, out, print_json, progress_bar

if TYPE_CHECKING:
    from ..engine.stage_comparison import TensorDifference
    from ..engine.upscaler import Upscaler


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
    from ..engine.images import Photo, check_writable, read_photo, write_photo
    from ..engine.metrics import compare_pictures, difference_picture

    if output is not None:
        check_writable(output)
        check_not_an_input(output, a, b, lr, *(ref or ()))
    differences: list[TensorDifference] = []
    if lr is not None or ref:
        if lr is None or not ref:
            raise AmsaError("two models are compared on photos: give both --lr and --ref")
        photos = read_photo(lr), [read_photo(r) for r in ref]
        names = [str(p) for p in (lr, *ref)]
        first, second = _open_model(a, backend_a, threads), _open_model(b, backend_b, threads)
        with progress_bar(as_json) as progress:
            pictures = [u.upscale_photo(*photos, seed=seed, names=names, progress=progress) for u in (first, second)]
            if stages:
                from ..engine.stage_comparison import compare_stages

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
        print_json(comparison.as_dict() | ({"stages": [d.as_dict() for d in differences]} if stages else {}))
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


def _open_model(path: Path, backend: str, threads: int | None) -> Upscaler:
    from ..engine.upscaler import Upscaler

    upscaler = Upscaler(path, backend, threads)
    err.print(f"{path}: {upscaler.backend} backend ({upscaler.device})")
    return upscaler


def _print_differences(differences: list[TensorDifference]) -> None:
    table = Table("stage", "tensor", "largest", "of at most", "mean", "PSNR", "equal", title="every stage on the same inputs")
    for d in differences:
        equal = "" if d.equal != d.equal else f"{d.equal:.2%}"
        psnr = "" if d.psnr != d.psnr else f"{d.psnr:.1f}"
        over = "" if d.holds else " !"
        table.add_row(d.stage, d.tensor, f"{d.largest:.1e}{over}", f"{d.bound:.1e}", f"{d.mean:.1e}", psnr, equal)
    out.print(table)
    out.print("largest and mean: shares of the tensor's largest value; for match: positions with another score, score lost")
