"""The command line: a thin shell over the Python API, a file per command. Heavy imports happen inside the commands."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Annotated

import typer

from .._version import __version__
from ..errors import AmsaError
from .build import build, inspect
from .calibrate import calibrate
from .compare import compare
from .demo import demo
from .deploy import deploy
from .doctor import doctor
from .evaluate import complexity, evaluate
from .export import convert, export
from .profile import profile
from .serve import serve
from .terminal import err, out
from .train import train
from .upscale import upscale

COMMANDS = (
    upscale,
    serve,
    deploy,
    demo,
    export,
    calibrate,
    build,
    convert,
    inspect,
    compare,
    evaluate,
    train,
    complexity,
    profile,
    doctor,
)
"""In the order in which `amsa --help` lists them."""

app = typer.Typer(
    name="amsa",
    help="Reference-based super-resolution: a blurry photo and sharp photos of something similar become a x4 picture.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in COMMANDS:
    app.command()(command)


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
        fail(str(e))
    except MemoryError:
        fail("not enough memory for pictures of this size; use smaller photos or close other programs")
    except KeyboardInterrupt:
        err.print("interrupted; nothing was written")
        sys.exit(130)


def fail(message: str) -> None:
    err.print(f"error: {' '.join(message.split())}")
    sys.exit(2)
