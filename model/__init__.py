"""The AMSA network in PyTorch, to be read beside the paper."""

from .checkpoints import convert_published, load_checkpoint, save_checkpoint
from ..config import AMSAConfig
from .network import AMSA

__all__ = ["AMSA", "AMSAConfig", "convert_published", "load_checkpoint", "save_checkpoint"]
