"""An address -> a hash of the bytes behind it: no modification time is trusted, no pixel is unpacked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from monai_mvreg.scans.addresses import ScanAddress
from monai_mvreg.scans.dicom.headers import CODECS
from monai_mvreg.scans.discovery import list_files
from monai_mvreg.scans.find import Scan
from monai_mvreg.scans.formats.byte_ranges import ScanError, read_whole
from monai_mvreg.scans.formats.nifti import header_file, is_nifti
from monai_mvreg.scans.formats.raster import is_volume, voxel_file


def content_hashes(addresses: Iterable[str]) -> dict[str, str]:
    """Hash the files of scans.

    Of a folder, a zip or a DICOMDIR all files count, with their names and in their order, not those of one series
    alone: a file that is added may be the missing slice. A header or the voxels in a second file count too.

    Args:
        addresses: addresses of scans.

    Returns:
        The SHA-256 of each; it does not depend on where the files lie.

    Raises:
        ScanError: if there is no file at an address.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(f"{folder}/a.png").write_bytes(b"1"), Path(f"{folder}/b.png").write_bytes(b"1")
        ...     len(set(content_hashes([f"{folder}/a.png", f"{folder}/b.png"]).values()))
        1
    """
    places: dict[Path, bytes] = {}  # several series may lie in one folder
    found: dict[str, str] = {}
    for address in addresses:
        parsed = ScanAddress.parse(address)
        if parsed.place not in places:
            places[parsed.place] = _hash_place(parsed.place)
        found[address] = hashlib.sha256(places[parsed.place] + parsed.key.encode()).hexdigest()
    return found


def scan_content(scan: Scan) -> str:
    """Hash the bytes of a scan that was found: of its own files, in their order, and its key; SHA-256.

    Unlike the hash of an address it stays when other series come to lie in the same folder.
    """
    whole = hashlib.sha256(scan.key.encode())
    for path in scan.files:
        whole.update(path.suffix.lower().encode())
        for file in _parts(path):
            whole.update(_hash_file(str(file)))
    return whole.hexdigest()


def codec_releases() -> list[str]:
    """What unpacks pixels: pydicom finds these packages by itself, no import leads to them."""
    installed = {package for _, package in CODECS.values()} & {d.name for d in metadata.distributions()}
    return [f"{package} {metadata.version(package)}" for package in sorted(installed)]


def _hash_place(place: Path) -> bytes:
    files, _ = list_files(place)
    if files == [str(place)]:  # its name does not count, but for its ending, which chooses the reader
        alone = hashlib.sha256(place.suffix.lower().encode())
        for file in _parts(place):
            alone.update(_hash_file(str(file)))
        return alone.digest()
    home = os.path.commonpath(files) if files else ""
    whole = hashlib.sha256()
    for name in files:
        whole.update(f"{os.path.relpath(name, home)}\0".encode("utf-8", "surrogateescape") + _hash_file(name))
    return whole.digest()


def _parts(path: Path) -> list[Path]:
    """The one or two files that a scan of one file is made of."""
    try:
        second = header_file(path) if is_nifti(path.name) else voxel_file(path) if is_volume(path.name) else path
    except ScanError:  # whoever reads the scan says what is wrong with it
        second = path
    return list(dict.fromkeys((path, second)))


def _hash_file(name: str) -> bytes:
    try:
        return hashlib.sha256(read_whole(name)).digest()
    except ScanError as error:  # company of a series need not be readable
        return hashlib.sha256(str(error).encode()).digest()
