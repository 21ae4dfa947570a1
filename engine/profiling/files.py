"""A profile as strict JSON, on the terminal and in a folder."""

from __future__ import annotations

import json
import math
import secrets
import tempfile
from pathlib import Path
from typing import Any

from ...errors import AmsaError
from .results import Profile

FILE = "profile.json"


def to_json(profile: Profile) -> str:
    """One line. What strict JSON cannot hold, as the PSNR of equal pictures, is null."""
    return json.dumps(_finite(profile.as_dict()), allow_nan=False) + "\n"


def prepare_folder(folder: Path) -> None:
    """Make a folder and try that it takes files: better now than after minutes. Raises AmsaError if it does not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise AmsaError(f"{folder}: files cannot be written there ({e.strerror}); choose another folder with --output") from e


def write_file(folder: Path, name: str, text: str) -> Path:
    """Write a file of the report, beside and renamed; returns its path. Raises AmsaError if it cannot be written."""
    part = folder / f".amsa-{secrets.token_hex(8)}"
    try:
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(folder / name)
        finally:
            part.unlink(missing_ok=True)
    except OSError as e:
        raise AmsaError(f"{folder / name} cannot be written ({e.strerror}); check the folder and the free space") from e
    return folder / name


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
