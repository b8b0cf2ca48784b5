"""Predictions as DICOM objects."""

from .evidence import write_object as write_object
from .read_report import read_report as read_report
from .structured_report import make_report as make_report
