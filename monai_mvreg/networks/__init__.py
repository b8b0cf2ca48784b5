"""Networks: encoder, pool and head, and the task that says what their outputs mean."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
