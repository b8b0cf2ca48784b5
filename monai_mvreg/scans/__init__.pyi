"""Scans: find the scans of a folder from their headers, and read one."""

from .find import Scan as Scan
from .find import find_scans as find_scans
from .formats.byte_ranges import ScanError as ScanError
from .read import Choices as Choices
from .read import ScanData as ScanData
from .read import read_scan as read_scan
from .reader import ScanReader as ScanReader
