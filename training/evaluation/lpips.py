"""LPIPS, where the user gives the network: it is not ours to ship, and its weights come from two other projects.

The file is a program that torch.export saved: two tensors [1, 3, H, W] in [-1, 1] in, their distance out. Made once,
with the packages lpips and torchvision, which fetch their own weights:

    import lpips, torch
    size = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    pair = torch.zeros(1, 3, 96, 128), torch.zeros(1, 3, 96, 128)
    program = torch.export.export(lpips.LPIPS(net="alex").eval(), pair, dynamic_shapes={"in0": size, "in1": size})
    torch.export.save(program, "lpips-alex.pt2")
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import AmsaError

Distance: TypeAlias = "Callable[[NDArray[np.uint8], NDArray[np.uint8]], float]"
"""Distance of two RGB pictures (HW3, 0..255); smaller is more alike."""

_MAKE = "make one as training/evaluation/lpips.py shows"


def load_lpips(path: str | Path) -> Distance:
    """Load a distance network.

    Raises:
        AmsaError: PyTorch is not installed, no such file, or not a saved program of two pictures of any size.
    """
    path = Path(path)
    try:
        import torch
    except ModuleNotFoundError as e:
        raise AmsaError("--lpips needs PyTorch; install it with: pip install 'amsa[export]'") from e
    if not path.is_file():
        raise AmsaError(f"{path}: no such file; {_MAKE}")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch logs a whole traceback before it raises
    try:
        network: Any = torch.export.load(path).module()
    except Exception as e:  # torch raises nearly every type there is on a file of another kind
        raise AmsaError(f"{path} is not a program that torch.export saved ({_first(e)}); {_MAKE}") from e
    finally:
        logging.disable(level)

    def tensor(picture: NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(picture.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - 1)

    def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
        try:
            with torch.inference_mode():
                return float(network(tensor(a), tensor(b)))
        except Exception as e:
            raise AmsaError(f"{path} fails on {a.shape[1]}x{a.shape[0]} pixels ({_first(e)}); {_MAKE}") from e

    return distance


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
