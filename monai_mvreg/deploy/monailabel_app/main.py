"""What MONAI Label starts from (``--app``): it looks here for the class of the app."""

from monai_mvreg.deploy.monailabel_app.app import PatientApp

__all__ = ["PatientApp"]
