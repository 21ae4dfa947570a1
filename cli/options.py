"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
