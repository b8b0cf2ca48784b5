"""Cohort: tables of patients and their scans, read, audited and split."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
