"""What Triton's Python backend runs: an `Upscaler` in a process of its own, a request a picture."""

from __future__ import annotations

import importlib
import json
import os
import traceback
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...engine.gpu.cuda import CudaError, OutOfDeviceMemory
from ...engine.images import FORMATS, check_format, encode_photo
from ...engine.upscaler import Upscaler
from ...errors import AmsaError
from ...stages import LR_MIN, REF_MIN, SCALE
from ..notes import gathered, routed
from ..uploads import Upload, check_count, decode
from .interface import OUTPUTS, Settings, check_interface

MODEL_FOLDER = "graphs"
"""Within a version's folder: the exported model; its engines, if any, are where `engine.tensorrt_build.engines_folder` says."""


class TritonPythonModel:
    """The class that Triton looks for. One instance works on one request at a time, in one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model and make a tiny picture: a model that cannot run is told when it is loaded."""
        # Triton's own module, which is there in its process only.
        self._triton: Any = importlib.import_module("triton_python_backend_utils")
        try:
            config = json.loads(args["model_config"])
            check_interface(config)
            self._settings = Settings.of(config)
            threads = None
            if self._settings.instances > 1:
                threads = max(1, len(os.sched_getaffinity(0)) // self._settings.instances)
            folder = Path(args["model_repository"]) / args["model_version"] / MODEL_FOLDER
            self._upscaler = Upscaler(folder, self._settings.backend, threads)
            self._upscaler.upscale(np.zeros((LR_MIN, LR_MIN, 3), np.uint8), [np.zeros((REF_MIN, REF_MIN, 3), np.uint8)])
        except AmsaError as e:
            raise self._triton.TritonModelException(str(e)) from e
        upscaler = self._upscaler
        self._triton.Logger.log_info(f"amsa: backend {upscaler.backend} ({upscaler.device}; {upscaler.kernels})")
        if not upscaler.trained:
            self._triton.Logger.log_warn(
                "amsa: these weights are untrained; pictures show the pipeline at work, not added detail"
            )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response per request: the picture, or one line that says what is wrong with the request."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Give back the device memory."""
        self._upscaler.close()

    def _answer(self, request: Any) -> Any:
        codes = self._triton.TritonError
        notes: list[str] = []
        try:
            with routed(), gathered(notes):
                content = self._picture(request)
        except _Cancelled:
            return self._refusal("cancelled", codes.CANCELLED)
        except AmsaError as e:
            # A GPU that fails is not the sender's fault; pictures that do not fit into its memory are.
            ours = isinstance(e, CudaError) and not isinstance(e, OutOfDeviceMemory)
            return self._refusal(str(e), codes.INTERNAL if ours else codes.INVALID_ARG)
        except MemoryError:
            return self._refusal("not enough memory for pictures of this size; use smaller photos", codes.INVALID_ARG)
        except Exception as e:  # a bug of ours ends the request, not the process
            self._triton.Logger.log_error(f"amsa: {traceback.format_exc()}")
            return self._refusal(f"{type(e).__name__} in amsa, which is a bug; the server's log says more", codes.INTERNAL)
        values = ([content], [note.encode() for note in notes])
        named = zip(OUTPUTS, values, strict=True)
        return self._triton.InferenceResponse(
            [self._triton.Tensor(tensor.name, np.array(value, np.object_)) for tensor, value in named]
        )

    def _refusal(self, message: str, code: Any) -> Any:
        return self._triton.InferenceResponse(error=self._triton.TritonError(" ".join(message.split()), code))

    def _picture(self, request: Any) -> bytes:
        """The content of the result's file."""
        (lr_content,) = self._values(request, "LR")
        ref_contents = self._values(request, "REFS")
        (seed,) = self._values(request, "SEED") or [0]
        (format_name,) = self._values(request, "FORMAT") or [b"png"]
        suffix = f".{format_name.decode(errors='replace').lower().removeprefix('.')}"
        if suffix not in FORMATS:
            known = ", ".join(known.removeprefix(".") for known in FORMATS)
            raise AmsaError(f"FORMAT is {suffix.removeprefix('.')!r}; give one of {known}")
        result = PurePosixPath(f"the result{suffix}")
        check_count(ref_contents)
        uploads = [Upload(f"reference {i}", content) for i, content in enumerate(ref_contents, 1)]
        lr, refs = decode(Upload("LR", lr_content), uploads, self._settings.pixels)
        check_format(result, lr, SCALE)

        def step(*_: object) -> None:
            if request.is_cancelled():
                raise _Cancelled

        sr = self._upscaler.upscale_photo(lr, refs, seed=int(seed), progress=step)
        return encode_photo(result, sr)

    def _values(self, request: Any, name: str) -> list[Any]:
        """An input's elements; none where an optional one was left out."""
        tensor = self._triton.get_input_tensor_by_name(request, name)
        return [] if tensor is None else list(tensor.as_numpy().reshape(-1))


class _Cancelled(Exception):
    """Nobody waits for the answer any more."""
