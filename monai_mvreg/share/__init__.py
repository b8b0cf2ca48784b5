"""Share: a trained model as one file, or as ONNX and TorchScript."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
