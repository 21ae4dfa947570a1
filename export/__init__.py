"""PyTorch to ONNX: the graphs, one composed graph, and the check that they compute the same."""

from .check import StageParity, check_parity
from .folder import check_target, export_folder, load_network
from .layer_precision import LayerPrecision, read_precision
from .single_file import FileParity, check_single_file, export_single_file

__all__ = [
    "FileParity",
    "LayerPrecision",
    "StageParity",
    "check_parity",
    "check_single_file",
    "check_target",
    "export_folder",
    "export_single_file",
    "load_network",
    "read_precision",
]
