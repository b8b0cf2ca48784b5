"""What a client may ask of the MONAI Label app."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_mvreg.label.request import read_question


def test_an_image_alone_asks_for_it_and_for_no_map() -> None:
    question = read_question({"image": "a"})
    assert question.images == ("a",) and not question.whole and question.patient is None and question.method is None


def test_an_image_that_is_named_twice_counts_once() -> None:
    assert read_question({"image": "a", "images": ["b", "a", "b"]}).images == ("a", "b")


def test_the_fields_of_other_clients_are_left_alone() -> None:
    asked = {"image": "a", "client_id": None, "device": "cuda", "save_label": True, "description": "x"}
    assert read_question(asked) == read_question({"image": "a"})


@pytest.mark.parametrize(
    ("slip", "meant"), [("patientt", "patient"), ("scan", "scans"), ("saliency_images", "saliency_image")]
)
def test_a_slip_of_a_name_is_refused_and_not_left_alone(slip: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"expected {meant}, got '{slip}'"):
        read_question({"image": "a", slip: "patient"})


def test_the_request_of_the_stock_slicer_extension_asks_for_a_label_as_nrrd() -> None:
    asked = {"image": "a", "scans": "image", "saliency": "gradcam"}
    question = read_question({**asked, "result_extension": ".nrrd", "result_dtype": "uint8"})
    assert question.label and question.extension == ".nrrd" and question.method == "gradcam"


@pytest.mark.parametrize(
    "value",
    ["/etc/passwd", "../a", "..", ".", "a/b", "a\\b", "a\0", "a\n", "*", "P?1", "", "a" * 201, 5, None, ["a"], {}],
)
def test_an_id_that_could_lead_elsewhere_is_refused(value: Any) -> None:
    for field in ("image", "images", "patient", "saliency_image"):
        asked = {"image": "a", field: [value] if field == "images" else value}
        if not value and field in ("patient", "saliency_image"):  # an empty text field of a form
            continue
        with pytest.raises(ValueError, match="expected"):
            read_question(asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"images": ["b"], "patient": "P"},
        {"images": ["b"], "scans": "patient"},
        {"images": "b"},
        {"images": ["b"] * 256},
        {"scans": "all"},
        {"saliency": "lime"},
        {"saliency": ["gradcam"]},
        {"result_extension": ".py"},
        {"result_dtype": "float64"},
        {"covariates": [63]},
        {"covariates": {"age": "63"}},
        {"covariates": {"age": True}},
        {"covariates": {"age": math.nan}},
        {"covariates": {"age": math.inf}},
    ],
)
def test_what_contradicts_itself_or_is_unknown_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_question({"image": "a", **asked})


@pytest.mark.parametrize("asked", [{"patient": "P"}, {"scans": "patient"}, {"images": ["a"]}])
def test_a_session_takes_no_scans_of_the_datastore(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="session or those of the datastore"):
        read_question(asked, session=True)


def test_a_session_needs_no_image() -> None:
    assert read_question({"image": ""}, session=True).images == ()


def test_covariates_are_numbers_by_name() -> None:
    assert read_question({"image": "a", "covariates": {"age": 63}}).covariates == {"age": 63.0}


_FIELDS = ["image", "images", "patient", "scans", "saliency", "saliency_image", "covariates", "result_dtype"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("aé/.*\\\0 ", max_size=8) | st.just("a"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON), st.booleans())
def test_any_json_is_understood_or_refused(asked: dict[str, Any], session: bool) -> None:
    try:
        question = read_question(json.loads(json.dumps(asked)), session=session)
    except ValueError as error:
        assert str(error).startswith("expected") and len(str(error)) < 200
    else:
        assert session or question.images
        assert not any(sign in image for image in question.images for sign in "/\\*?\0")
