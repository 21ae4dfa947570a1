"""The custom ops of domain `amsa`, each declared once. Importing this needs neither torch nor onnx."""

from .deformable_sample.spec import DEFORMABLE_SAMPLE
from .patch_match.spec import PATCH_MATCH
from .spec import DOMAIN, OPSET, VERSION, OpSpec

OPS = (PATCH_MATCH, DEFORMABLE_SAMPLE)

__all__ = ["DEFORMABLE_SAMPLE", "DOMAIN", "OPS", "OPSET", "PATCH_MATCH", "VERSION", "OpSpec"]
