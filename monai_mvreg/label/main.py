"""What MONAI Label starts from (``--app``): it looks here for the class of the app."""

from monai_mvreg.label.app import PatientApp

__all__ = ["PatientApp"]
