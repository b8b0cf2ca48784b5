from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny_model import BUNDLE, SETTINGS, write_model, write_scan

from monai_mvreg.trained.trained_model import read_residuals, read_trained
from tests.results.tables import table_of

CPU = torch.device("cpu")


def test_a_model_comes_back_with_its_weights_in_evaluation_mode(tmp_path: Path) -> None:
    models = write_model(tmp_path / "models")
    [member] = read_trained(BUNDLE, models, CPU).members
    stored = torch.load(models / "model.pt", weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in member.network.state_dict().items())
    assert not member.network.training


def test_networks_of_a_cross_validation_do_not_share_parts(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_model(tmp_path / f"fold-a_seed-{seed}" / "models", seed=seed)
    one, other = read_trained(BUNDLE, tmp_path, CPU).members
    assert not torch.equal(one.network.head.weight, other.network.head.weight)
    assert (one.fold, other.fold) == ("a", "a")


def test_models_of_other_settings_are_no_ensemble(tmp_path: Path) -> None:
    write_model(tmp_path / "fold-a_seed-0" / "models")
    write_model(tmp_path / "fold-b_seed-0" / "models", unit="L")
    with pytest.raises(
        ValueError,
        match=r"fold-b_seed-0: expected the settings of fold-a_seed-0, these differ: unit \(there: mL, here: L\)",
    ):
        read_trained(BUNDLE, tmp_path, CPU)


@pytest.mark.parametrize("lost", ["model.pt", "domain.json", "intervals.json"])
def test_a_part_that_is_missing_is_named(lost: str, tmp_path: Path) -> None:
    models = write_model(tmp_path / "models")
    (models / lost).unlink()
    with pytest.raises(FileNotFoundError, match=lost):
        read_trained(BUNDLE, models, CPU)


def test_where_nothing_was_trained_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a trained model in .*: train first, or name its folder"):
        read_trained(BUNDLE, tmp_path, CPU)
    with pytest.raises(FileNotFoundError, match=r"expected a bundle with configs/inference\.yaml in .*: give --bundle"):
        read_trained(tmp_path, tmp_path, CPU)


def test_settings_of_an_earlier_version_are_refused(tmp_path: Path) -> None:
    models = write_model(tmp_path / "models")
    settings = {name: value for name, value in SETTINGS.items() if name != "own"}
    (models / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"expected the settings of a training by version 0\.1 or later, found no own: train again"
    ):
        read_trained(BUNDLE, models, CPU)


def test_weights_are_read_as_numbers_and_never_as_code(tmp_path: Path) -> None:
    models = write_model(tmp_path / "models")

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save(Evil(), models / "model.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        read_trained(BUNDLE, models, CPU)
    assert not (tmp_path / "ran").exists()


def test_a_setting_of_ones_own_that_others_refer_to_comes_along(tmp_path: Path) -> None:
    intensity = [{**SETTINGS["intensity"][0], "a_max": "@brightest", "b_max": "$math.pi"}]
    own = {"brightest": 200, "imports": ["$import math"]}
    trained = read_trained(BUNDLE, write_model(tmp_path / "models", intensity=intensity, own=own, brightest=200), CPU)
    scan = write_scan(tmp_path / "scan.nii", seed=1, level=100.0)
    image = trained.transform({"image": str(scan)})["image"]
    assert float(image.mean()) == pytest.approx(3.14159 / 2, abs=0.2)


# ---- Residuals of a cross-validation ---------------------------------------------------------------------------------


def test_residuals_keep_the_names_of_folds_and_every_digit(tmp_path: Path) -> None:
    columns = {"volume": [0.1, 0.3, None], "volume_predicted": [0.3, 0.1, 1.0], "volume_spread": [3.0, 1.0, 1.0]}
    folds = ["NA", "007", "None"]
    table_of(pd.DataFrame({**columns, "fold": folds})).write(tmp_path / "predictions.csv")
    found = read_residuals(tmp_path, ["volume"])
    assert found["fold"].tolist() == folds and found["volume"].tolist()[:2] == [(0.1 - 0.3) / 3, 0.3 - 0.1]
    (tmp_path / "predictions.csv").unlink()
    found.to_csv(tmp_path / "residuals.csv", index=False)  # as a pack holds it
    pd.testing.assert_frame_equal(read_residuals(tmp_path, ["volume"]), found, check_exact=True, check_dtype=False)
    assert read_residuals(tmp_path, ["volume"])["volume"].isna().tolist() == [False, False, True]
