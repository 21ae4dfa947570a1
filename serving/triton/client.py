"""Upscale a photo with a Triton server that serves amsa: python client.py small.jpg sharp.jpg -o big.png --url localhost:8000

Needs: pip install 'tritonclient[http]'. It needs nothing of amsa, so copy it wherever it is of use.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class Failure(Exception):
    """What went wrong, in one line."""


def upscale(client: Any, lr: bytes, refs: Sequence[bytes], format: str, timeout: float) -> tuple[bytes, list[str]]:
    """Send one request.

    Args:
        client: a `tritonclient.http.InferenceServerClient`.
        lr, refs: contents of picture files.
        format: of the result: png, jpg, webp, tif, avif or bmp.
        timeout: seconds that the request may wait until the server begins with it.

    Returns:
        The content of the result's file, and the server's notes.
    """
    import numpy as np
    from tritonclient.http import InferInput

    inputs = []
    for name, values in (("LR", [lr]), ("REFS", list(refs)), ("FORMAT", [format.encode()])):
        tensor = InferInput(name, [len(values)], "BYTES")
        tensor.set_data_from_numpy(np.array(values, np.object_))
        inputs.append(tensor)
    result = client.infer("amsa", inputs, timeout=int(timeout * 1e6))
    (sr,) = result.as_numpy("SR")
    return sr, [note.decode() for note in result.as_numpy("NOTES")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Upscale a photo x4 with a Triton server that serves amsa.")
    parser.add_argument("lr", type=Path, help="the low-resolution photo")
    parser.add_argument("refs", type=Path, nargs="+", metavar="ref", help="sharp photos of something similar")
    parser.add_argument("-o", "--output", type=Path, required=True, help="where to write the picture; the suffix is its format")
    parser.add_argument("--url", default="localhost:8000", help="of the server: host:port, or with http:// or https://")
    parser.add_argument("--timeout", type=float, default=600, help="seconds to wait for the picture (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        _run(given.lr, given.refs, given.output, given.url, given.timeout)
    except Failure as e:
        sys.exit(f"error: {e}")


def _run(lr: Path, refs: Sequence[Path], output: Path, url: str, timeout: float) -> None:
    try:
        from tritonclient.http import InferenceServerClient
        from tritonclient.utils import InferenceServerException
    except ImportError as e:
        raise Failure(f"{e.name} is missing; install it with: pip install 'tritonclient[http]'") from e
    if not output.suffix:
        raise Failure(f"{output} has no suffix, which would name the format; give one, as in {output}.png")
    if not output.parent.is_dir():
        raise Failure(f"{output.parent}: no such folder; create it first")
    contents = [_read(path) for path in (lr, *refs)]
    address, secure = _address(url)
    # Pictures take seconds; what the library waits by itself is a minute.
    client = InferenceServerClient(address, ssl=secure, connection_timeout=10, network_timeout=timeout)
    try:
        sr, notes = upscale(client, contents[0], contents[1:], output.suffix.removeprefix("."), timeout)
    except InferenceServerException as e:
        raise Failure(e.message()) from e
    except TimeoutError as e:
        raise Failure(f"{url}: no answer within {timeout:g} seconds; give a longer --timeout") from e
    except Exception as e:  # beside OSError the library's HTTP parser has errors of its own
        reason = getattr(e, "strerror", None) or e
        raise Failure(f"{url}: no Triton server answers HTTP there ({reason}); check --url, and that it runs") from e
    finally:
        client.close()
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    _write(output, sr)
    print(f"{output}: {len(sr) / 1e6:.2f} MB")


def _address(url: str) -> tuple[str, bool]:
    """Host and port, and whether it is HTTPS."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port or (443 if parts.scheme == "https" else 8000)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("no host")
    except ValueError as e:
        raise Failure(f"--url {url} is no address of a server ({e}); give host:port") from e
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}{parts.path.rstrip('/')}", parts.scheme == "https"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise Failure(f"{path} cannot be read ({e.strerror})") from e


def _write(path: Path, content: bytes) -> None:
    """Write beside, then rename: the file is whole or not there."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
            beside = Path(scratch) / path.name
            beside.write_bytes(content)
            beside.replace(path)
    except OSError as e:
        raise Failure(f"{path} cannot be written ({e.strerror})") from e


if __name__ == "__main__":
    main()
