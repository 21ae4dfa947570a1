"""What a deployed model takes and gives, declared once: `config.pbtxt` is made from it, and checked against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import AmsaError
from ..limits import Limits

MODEL = "amsa"
"""The model's name in the repository."""
BACKENDS = ("onnxruntime", "tensorrt")


@dataclass(frozen=True)
class Tensor:
    """A tensor on the wire. Triton's TYPE_STRING holds any bytes; -1 is any number of elements."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    doc: str
    optional: bool = False


INPUTS = (
    Tensor("LR", "TYPE_STRING", (1,), "the photo to enlarge: the content of a picture file, sides from 16 pixels"),
    Tensor("REFS", "TYPE_STRING", (-1,), "the references likewise, each of a size of its own, sides from 64 pixels"),
    Tensor("SEED", "TYPE_INT32", (1,), "of the initial matches; 0 if left out", optional=True),
    Tensor("FORMAT", "TYPE_STRING", (1,), "of the result: png, jpg, webp, tif, avif or bmp; png if left out", optional=True),
)
OUTPUTS = (
    Tensor("SR", "TYPE_STRING", (1,), "the x4 picture, as the content of a file"),
    Tensor("NOTES", "TYPE_STRING", (-1,), "what the sender should know: parts of a file that were left out, shortage of memory"),
)


@dataclass(frozen=True)
class Settings:
    """What a repository is deployed with.

    Attributes:
        backend: "onnxruntime" (CPU) or "tensorrt" (the first GPU that the server sees).
        instances: pictures that are made at a time, each by a process of its own.
        queue: requests that may wait; the next is refused at once.
        pixels: of a result, and of all references of a request together.
    """

    backend: str = BACKENDS[0]
    instances: int = 1
    queue: int = Limits.queue
    pixels: int = Limits.pixels

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        """Read them back from a model's configuration, as Triton gives it to the model.

        Raises:
            AmsaError: a parameter is missing or was changed to what it cannot be.
        """
        try:
            values = {name: value["string_value"] for name, value in config["parameters"].items()}
            backend, pixels = values["backend"], int(values["max_pixels"])
            if backend not in BACKENDS or pixels < 1:
                raise ValueError(f"backend {backend!r}, max_pixels {pixels}")
            queue = config["dynamic_batching"]["default_queue_policy"]["max_queue_size"]
            return cls(backend, sum(group["count"] for group in config["instance_group"]), queue, pixels)
        except (KeyError, TypeError, ValueError) as e:
            reason = f"{type(e).__name__}: {e}"
            raise AmsaError(f"config.pbtxt is not as `amsa deploy` wrote it ({reason}); mend it, or deploy again") from e


def config_text(settings: Settings) -> str:
    """`config.pbtxt`, with what a reader would ask as comments."""
    gpu = settings.backend == "tensorrt"
    why = "A picture keeps the GPU busy, and amsa takes the first one that it sees." if gpu else "Instances share the cores."
    kind = "KIND_GPU gpus: [ 0 ]" if gpu else "KIND_CPU"
    return f"""# Written by `amsa deploy triton`. What may be changed here: count, max_queue_size, max_pixels.
name: "{MODEL}"
backend: "python"
# A request is one picture with its references, each of a size of its own: there is no batch dimension to put two into.
max_batch_size: 0
input [
{_tensors(INPUTS)}
]
output [
{_tensors(OUTPUTS)}
]
# {why}
instance_group [
  {{ count: {settings.instances} kind: {kind} }}
]
# Batches of one: the batcher is here for its bounded queue. What does not fit, or waits too long, is refused with 503.
dynamic_batching {{
  # Microseconds in the queue, where the request names none.
  default_queue_policy {{
    max_queue_size: {settings.queue} default_timeout_microseconds: {int(1e6 * Limits.seconds)} allow_timeout_override: true
  }}
}}
parameters {{ key: "backend" value {{ string_value: "{settings.backend}" }} }}
# Of a result, and of all references of a request together.
parameters {{ key: "max_pixels" value {{ string_value: "{settings.pixels}" }} }}
"""


def _tensors(tensors: Sequence[Tensor]) -> str:
    lines = []
    for t in tensors:
        dims, optional = ", ".join(map(str, t.dims)), " optional: true" if t.optional else ""
        end = "" if t is tensors[-1] else ","
        fields = f'name: "{t.name}" data_type: {t.data_type} dims: [ {dims} ]{optional}'
        lines += [f"  # {t.doc}", f"  {{ {fields} }}{end}"]
    return "\n".join(lines)


def check_interface(config: Mapping[str, Any]) -> None:
    """AmsaError unless a model's configuration, as Triton gives it to the model, has the tensors of this version of amsa."""
    for kind, tensors in (("input", INPUTS), ("output", OUTPUTS)):
        found = [(t["name"], t["data_type"], t["dims"], t.get("optional", False)) for t in config[kind]]
        if found != [(t.name, t.data_type, [*t.dims], t.optional) for t in tensors]:
            raise AmsaError(
                f"config.pbtxt has the {kind}s {', '.join(str(t[0]) for t in found)}, which are not those of the amsa that is "
                "installed here; deploy the repository again with this version"
            )
