"""Small NRRD and MetaImage files for tests, written byte by byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np

META = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nDimSize = 4 3 2\n"
SHORTS = np.arange(24, dtype="<i2").tobytes()


def write_meta(path: Path, fields: str = "", voxels: bytes = SHORTS) -> Path:
    path.write_bytes(f"{META}{fields}ElementType = MET_SHORT\nElementDataFile = LOCAL\n".encode() + voxels)
    return path


NRRD = "NRRD0005\ntype: short\ndimension: 3\nsizes: 4 3 2\nendian: little\n"


def write_nrrd(path: Path, fields: str, voxels: bytes = SHORTS) -> Path:
    path.write_bytes(f"{NRRD}{fields}\n".encode() + voxels)
    return path
