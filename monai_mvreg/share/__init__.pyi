"""Share: a trained model as one file, or as ONNX and TorchScript."""

from .exporting import export_onnx as export_onnx
from .exporting import export_torchscript as export_torchscript
from .packing import pack_bundle as pack_bundle
from .packing import unpack_bundle as unpack_bundle
from .packing import verify_bundle as verify_bundle
