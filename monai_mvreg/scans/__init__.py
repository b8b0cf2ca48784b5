"""Scans: find the scans of a folder from their headers, and read one."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
