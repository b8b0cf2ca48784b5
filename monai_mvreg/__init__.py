"""One number per patient from all of that patient's scans: a plugin package for MONAI."""

from importlib.metadata import version as _version

import lazy_loader

__getattr__, _, _names = lazy_loader.attach_stub(__name__, __file__)
__version__ = _version("monai-mvreg")
__all__ = [*_names, "__version__"]


def __dir__() -> list[str]:
    return __all__
