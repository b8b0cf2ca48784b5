"""Pictures of scans: turned as radiologists look at them, with outlines that need no colour."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from monai_mvreg.cohort.thumbnails import ScanPicture, as_jpeg, picture_of, square_pixels


def pixels(picture: ScanPicture, edge: int = 200) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(as_jpeg(picture, edge))).convert("L")).astype(float)


def test_the_patients_right_front_corner_is_at_the_upper_left() -> None:
    image = np.zeros((20, 30, 5))
    image[-1, -1, 2] = 1  # RAS+: the last voxel is the rightmost and frontmost
    grey = picture_of(image, spacing=(1, 1, 1)).grey
    assert grey is not None and grey.shape == (30, 20)
    assert np.argwhere(grey == 1).tolist() == [[0, 0]]


def test_the_slice_with_the_strongest_saliency_is_shown_else_the_middle_one() -> None:
    image = np.broadcast_to(np.arange(9.0), (4, 4, 9))
    saliency = np.zeros((4, 4, 9))
    saliency[1, 1, 7], saliency[2, 2, 1] = -2.0, 1.0
    assert (picture_of(image, spacing=(1, 1, 1)).grey == 4).all()
    assert (picture_of(image, saliency, spacing=(1, 1, 1)).grey == 7).all()


def test_channels_come_first_and_saliency_may_lack_them() -> None:
    image = np.stack([np.zeros((6, 5)), np.ones((6, 5))])
    picture = picture_of(image, np.ones((6, 5)), spacing=(1, 1))
    both = picture_of(image, np.ones((2, 6, 5)), spacing=(1, 1))
    assert (picture.grey == 0).all() and (picture.saliency == 1).all() and (both.saliency == 2).all()


def test_pixels_become_square_by_the_spacing() -> None:
    picture = picture_of(np.zeros((20, 30)), np.zeros((20, 30)), spacing=(1.0, 0.5))
    assert picture.grey is not None and picture.grey.shape == (30, 40)
    assert picture.saliency is not None and picture.saliency.shape == (30, 40)


@pytest.mark.parametrize(
    ("image", "saliency", "spacing"),
    [
        (np.zeros((4, 4, 4)), np.zeros((4, 4, 3)), (1, 1, 1)),
        (np.zeros((2, 2, 4, 4)), None, (1, 1)),
        (np.zeros(4), None, (1,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(image: np.ndarray, saliency: np.ndarray | None, spacing: tuple) -> None:
    with pytest.raises(ValueError, match="expected an image with 2 or 3 axes of space"):
        picture_of(image, saliency, spacing=spacing)


@pytest.mark.parametrize(
    "image", [np.zeros((30, 20)), np.full((30, 20), np.nan), np.random.default_rng(0).random((300, 200))]
)
def test_any_picture_has_the_size_asked_for(image: np.ndarray) -> None:
    assert pixels(picture_of(image, spacing=(1, 1))).shape == (133, 200)
    assert pixels(picture_of(image, image, spacing=(1, 1))).shape == (133, 200)


def test_what_may_not_be_shown_is_empty() -> None:
    assert as_jpeg(ScanPicture(None, None, "text may be burned in"), 100) == b""


def test_without_colour_what_lowers_is_hatched_and_what_raises_is_not() -> None:
    saliency = np.zeros((100, 100), np.float32)
    saliency[10:45, 30:70], saliency[55:90, 30:70] = -1, 1
    shown = pixels(ScanPicture(np.full((100, 100), 0.5, np.float32), saliency.T, ""), 400)
    flat = pixels(ScanPicture(np.full((100, 100), 0.5, np.float32), None, ""), 400)
    lowered, raised = (slice(140, 180), slice(60, 160)), (slice(140, 180), slice(240, 340))
    assert np.ptp(shown[lowered]) > 100
    assert np.abs(shown - flat)[raised].max() < 20


def test_no_saliency_at_all_leaves_the_picture_as_it_is() -> None:
    image = np.random.default_rng(0).random((50, 50))
    same = picture_of(image, np.zeros((50, 50)), spacing=(1, 1))
    np.testing.assert_array_equal(pixels(same), pixels(picture_of(image, spacing=(1, 1))))


def test_a_photograph_keeps_its_colours() -> None:
    red = np.zeros((20, 30, 3), np.float32)
    red[:, 15:, 0] = 255
    shown = np.asarray(Image.open(io.BytesIO(as_jpeg(ScanPicture(red, None, ""), 60)))).astype(int)
    assert shown.shape == (40, 60, 3)
    assert (shown[:, 40:, 0] > 240).all() and (shown[:, 40:, 1:] < 15).all() and (shown[:, :20] < 15).all()


@pytest.mark.parametrize(
    ("across", "down", "shape"), [(1, 1, (20, 30)), (1, 5, (100, 30)), (4, 1, (20, 120)), (1e-9, 1, (200, 30))]
)
def test_pixels_become_square_and_no_picture_becomes_huge(across: float, down: float, shape: tuple[int, int]) -> None:
    assert square_pixels(np.zeros((20, 30, 3)), across=across, down=down).shape == (*shape, 3)
    assert square_pixels(np.full((20, 30), 7.0), across=across, down=down).tolist() == np.full(shape, 7.0).tolist()
