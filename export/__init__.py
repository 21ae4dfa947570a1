"""PyTorch to ONNX: the graphs, one composed graph, and the check that they compute the same."""

from .check import StageParity, check_parity
from .folder import check_target, export_folder, load_network
from .single_file import export_single_file

__all__ = ["StageParity", "check_parity", "check_target", "export_folder", "export_single_file", "load_network"]
