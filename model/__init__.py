"""The AMSA network in PyTorch, to be read beside the paper."""

from ..config import AMSAConfig
from .checkpoints import convert_published, load_checkpoint, save_checkpoint
from .network import AMSA

__all__ = ["AMSA", "AMSAConfig", "convert_published", "load_checkpoint", "save_checkpoint"]
