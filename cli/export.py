"""`amsa export` and `amsa convert`: from checkpoints to checkpoints and ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..errors import AmsaError
from .terminal import check_not_an_input, err, out, require_extra


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
    require_extra("export", "torch", "onnxscript", "safetensors")
    from .. import export as exporter
    from ..manifest import ModelFolder

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


def convert(
    files: Annotated[list[Path], typer.Argument(help="The published .pth files, in any order; or a checkpoint.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write (.safetensors).")],
    fp16: Annotated[bool, typer.Option("--fp16", help="Round the weights to float16: half the size.")] = False,
) -> None:
    """Convert the published checkpoints (feature extraction, restoration, VGG19) to one file; or a checkpoint to --fp16."""
    require_extra("export", "torch", "safetensors")
    from ..model.checkpoints import convert_published, load_checkpoint, save_checkpoint

    if output.suffix != ".safetensors":
        raise AmsaError(f"{output}: a checkpoint's name must end in .safetensors")
    check_not_an_input(output, *files)
    if len(files) == 1 and files[0].suffix == ".safetensors":
        model, metadata = load_checkpoint(files[0])
    else:
        model, metadata = convert_published(files), {"trained": True}
    save_checkpoint(output, model, metadata, fp16)
    c = model.config
    out.print(f"{output}: {c.variant}, {c.channels[0]} channels, {c.blocks[0]} blocks, {c.groups} groups")
