from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from make_dicom import write_series
from tiny_model import BUNDLE, write_model

from monai_mvreg.cohort.table import Patient
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.report.patient_pictures import scan_pictures


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return Predictor.from_bundle(BUNDLE, models=write_model(tmp_path / "model" / "models"))


def of(*scans: Path) -> Patient:
    return Patient("1", tuple(map(str, scans)), (0.0,) * len(scans), (0,) * len(scans), (), ())


def left_and_front(path: Path, signs: tuple[float, float]) -> Path:
    """A volume with one bright corner, at the patient's left and front, stored in any direction."""
    voxels = np.zeros((10, 8, 5), np.float32)
    voxels[7:, :2, :] = 100  # x grows to the left, y to the back
    x, y = signs
    if x > 0:
        voxels = voxels[::-1]
    if y > 0:
        voxels = voxels[:, ::-1]
    nib.save(nib.Nifti1Image(np.ascontiguousarray(voxels), np.diag([x, y, 2.0, 1.0])), path)
    return path


@pytest.mark.parametrize("signs", [(-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0)])
def test_the_left_of_a_patient_is_on_the_right_and_the_front_is_up(
    signs: tuple[float, float], predictor: Predictor, tmp_path: Path
) -> None:
    [picture] = scan_pictures(predictor, of(left_and_front(tmp_path / "a.nii", signs)))
    assert picture.grey is not None and picture.saliency is None
    rows, columns = np.nonzero(picture.grey > 50)
    assert rows.max() < picture.grey.shape[0] / 2 < picture.grey.shape[1] / 2 < columns.min()


def test_what_the_network_went_by_lies_in_the_same_place_however_a_scan_is_stored(
    predictor: Predictor, tmp_path: Path
) -> None:
    pictures = [
        scan_pictures(predictor, of(left_and_front(tmp_path / f"{at}.nii", signs)), saliency="gradcam")[0]
        for at, signs in enumerate([(-1.0, -1.0), (1.0, 1.0)])
    ]
    one, other = (picture.saliency for picture in pictures)
    assert one is not None and other is not None and float(np.abs(one).max()) > 0
    np.testing.assert_allclose(one, other, atol=1e-3 * float(np.abs(one).max()))


def test_a_scan_with_a_name_burned_in_is_shown_on_request_alone(predictor: Predictor, tmp_path: Path) -> None:
    series = write_series(tmp_path / "series", BurnedInAnnotation="YES")
    [hidden] = scan_pictures(predictor, of(series))
    assert (hidden.grey, hidden.caption) == (None, "not shown: text may be burned in")
    [shown] = scan_pictures(predictor, of(series), identify=True)
    assert shown.grey is not None
