from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from make_dicom import write_series
from scipy.spatial.distance import mahalanobis
from scipy.stats import kstest
from tiny_model import BUNDLE, write_model

from monai_mvreg.cache.typed_json import read_json, write_json
from monai_mvreg.metrics.bootstrap import Array
from monai_mvreg.trained.trained_model import read_trained
from monai_mvreg.trained.training_domain import (
    Domain,
    ScanFacts,
    embed_scan,
    facts_of,
    fit_cloud,
    header_of,
    look,
    percentiles,
    ranges,
)

SEEN = Domain(
    patients=20,
    scans=(2, 5),
    follow_up=(100.0, 900.0),
    modalities=("MR",),
    spacing=((1.0, 1.0), (1.0, 1.2), (3.0, 5.0)),
    intensity=((0.0, 0.0), (10.0, 20.0), (30.0, 50.0), (60.0, 80.0), (90.0, 200.0)),
    cloud=None,
    targets={"volume": percentiles(np.linspace(100, 200, 50).tolist())},
)
LIKE = ScanFacts("MR", (1.0, 1.1, 4.0), (0.0, 15.0, 40.0, 70.0, 150.0))
NOWHERE = np.zeros(3)


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


def correlated(draw: np.random.Generator, count: int, size: int) -> Array:
    return np.asarray(draw.normal(size=(count, size)) @ np.random.default_rng(9).normal(size=(size, size)) + 5)


def test_with_all_axes_the_distance_is_that_of_mahalanobis(draw: np.random.Generator) -> None:
    training, new = correlated(draw, 400, 5), correlated(draw, 20, 5)
    cloud = fit_cloud(training, correlated(draw, 50, 5))
    assert cloud is not None and len(cloud.variances) == 4  # the fifth axis is the rest
    inverse = np.linalg.inv(np.cov(training.T))
    expected = [mahalanobis(row, training.mean(0), inverse) for row in new]
    np.testing.assert_allclose(cloud.distance(new), expected, rtol=1e-5)


def test_scans_of_the_same_kind_are_as_rare_as_chance_says(draw: np.random.Generator) -> None:
    cloud = fit_cloud(correlated(draw, 300, 40), correlated(draw, 500, 40))
    assert cloud is not None
    rarities = [cloud.rarity(row) for row in correlated(draw, 500, 40)]
    assert kstest(rarities, "uniform").pvalue > 0.01


def test_a_scan_as_far_as_the_farthest_known_one_is_not_farther(draw: np.random.Generator) -> None:
    held_out = correlated(draw, 50, 3)
    cloud = fit_cloud(correlated(draw, 100, 3), held_out)
    assert cloud is not None
    farthest = held_out[cloud.distance(held_out).argmax()]
    tied = replace(cloud, distances=tuple(sorted(cloud.distance(held_out).tolist())))
    assert tied.rarity(farthest) == pytest.approx(2 / 51)


def test_what_is_far_along_no_axis_of_the_training_is_rare(draw: np.random.Generator) -> None:
    flat = np.concatenate([correlated(draw, 200, 3), np.zeros((200, 7))], axis=1)
    cloud = fit_cloud(flat[:100], flat[100:])
    assert cloud is not None
    new = flat[0].copy()
    assert cloud.rarity(new) > 0.05
    new[9] += 3
    assert cloud.rarity(new) == pytest.approx(1 / 101)


def test_with_few_scans_nobody_says_what_is_far(draw: np.random.Generator) -> None:
    assert fit_cloud(draw.normal(size=(9, 3)), draw.normal(size=(50, 3))) is None
    assert fit_cloud(draw.normal(size=(50, 3)), draw.normal(size=(9, 3))) is None


def test_a_scan_like_those_of_the_training_is_not_spoken_of() -> None:
    assert SEEN.check_scan(LIKE, NOWHERE) == {}
    assert SEEN.check_scan(replace(LIKE, modality="", spacing=()), NOWHERE) == {}


@pytest.mark.parametrize(
    ("facts", "check", "sentence"),
    [
        (replace(LIKE, modality="CT"), "modality", "modality CT, training saw MR"),
        (replace(LIKE, spacing=(1.0, 1.1, 8.0)), "spacing", "spacing 8 mm, training saw 3 to 5 mm"),
        (replace(LIKE, spacing=(0.5, 1.1, 4.0)), "spacing", "spacing 0.5 mm, training saw 1 mm"),
        (replace(LIKE, spacing=(1.0, 1.1)), "spacing", "2 axes with a spacing, training saw 3"),
        (
            replace(LIKE, intensity=(0.0, 15.0, 400.0, 700.0, 1500.0)),
            "intensity",
            "50% of its values lie below 400, in training below 30 to 50",
        ),
    ],
)
def test_what_the_training_never_saw_is_told_with_both_sides(facts: ScanFacts, check: str, sentence: str) -> None:
    assert SEEN.check_scan(facts, NOWHERE) == {check: sentence}


def test_the_intensities_of_a_scan_in_other_units_are_told(draw: np.random.Generator) -> None:
    image = draw.uniform(0, 100, (20, 20, 20))
    facts = [facts_of(scale * image, modality="MR", spacing=(4.0, 1.0, 1.1)) for scale in (1.0, 10.0)]
    seen = replace(SEEN, intensity=ranges([facts[0].intensity]))
    assert seen.check_scan(facts[0], NOWHERE) == {}
    assert list(seen.check_scan(facts[1], NOWHERE)) == ["intensity"]


def test_quantiles_of_a_large_scan_are_those_of_all_its_voxels_nearly(draw: np.random.Generator) -> None:
    image = draw.normal(100, 20, (100, 100, 100))
    exact = np.quantile(image, [0.01, 0.25, 0.5, 0.75, 0.99])
    np.testing.assert_allclose(facts_of(image, modality="", spacing=()).intensity, exact, rtol=0.01)


def test_numbers_of_scans_and_times_that_training_never_saw_are_told() -> None:
    assert SEEN.check_patient(3, 500.0) == {}
    assert SEEN.check_patient(9, 2000.0) == {
        "scans": "9 scans, training saw 2 to 5 a patient",
        "follow_up": "scans over 2000 days, training saw 100 to 900",
    }


def test_a_number_beyond_those_of_the_training_is_told() -> None:
    assert SEEN.check_value("volume", 150.0) == SEEN.check_value("age", 1e9) == {}
    assert SEEN.check_value("volume", 250.0) == {"value": "volume 250, training patients had 100 to 200"}


def test_a_domain_is_read_back_as_it_was_written(draw: np.random.Generator, tmp_path: Path) -> None:
    cloud = fit_cloud(correlated(draw, 60, 6), correlated(draw, 30, 6))
    for domain in (SEEN, replace(SEEN, cloud=cloud, spacing=())):
        write_json(domain, tmp_path / "domain.json")
        assert read_json(Domain, tmp_path / "domain.json") == domain


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cloud": {}}', '{"cloud": null, "patients": 3}'])
def test_another_file_is_no_domain(text: str, tmp_path: Path) -> None:
    (tmp_path / "domain.json").write_text(text)
    with pytest.raises(ValueError, match=r"^domain\.json: "):
        read_json(Domain, tmp_path / "domain.json")


def test_a_scan_is_looked_at_before_it_is_prepared(tmp_path: Path) -> None:
    trained = read_trained(BUNDLE, write_model(tmp_path / "models"), torch.device("cpu"))
    series = str(write_series(tmp_path / "series"))  # pixels 0 to 51 in steps, 0.25 x 0.5 x 2 mm
    facts, image = look(series, header_of(series, trained.reader), trained.transform)
    assert (facts.modality, facts.spacing) == ("MR", (0.25, 0.5, 2.0))
    assert facts.intensity[2] == pytest.approx(25.5)
    assert tuple(image.shape) == (1, 6, 6, 4) and float(image.max()) < 1


def test_an_embedding_does_not_depend_on_the_mode_of_a_training(tmp_path: Path) -> None:
    [member] = read_trained(BUNDLE, write_model(tmp_path / "models"), torch.device("cpu")).members
    image = torch.rand(1, 6, 6, 4)
    expected = member.network.encoder(image[None])[0]
    torch.testing.assert_close(embed_scan(member.network, image), expected.detach())


def test_what_a_training_saw_is_written_down(tmp_path: Path) -> None:
    domain = read_json(Domain, write_model(tmp_path / "models") / "domain.json")
    assert (domain.patients, domain.scans, domain.follow_up) == (13, (2, 2), (300.0, 300.0))
    assert domain.spacing == ((1.0, 1.0), (1.0, 1.0), (2.0, 2.0))
    assert domain.intensity[2] == pytest.approx((50, 50), abs=2)
    assert domain.targets["volume"][0] == 0 and domain.targets["volume"][-1] == 12
    assert domain.cloud is not None and len(domain.cloud.distances) == 14
