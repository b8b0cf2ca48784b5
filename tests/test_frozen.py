"""frozen.yaml: heads trained from the embeddings on disk are those trained from images, and the rest works as ever."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

BUNDLE = Path(__file__).parents[1] / "bundle"
CONFIGS = BUNDLE / "configs"
TINY: dict[str, Any] = {
    "spatial_size": [16, 16, 16],
    "intensity": [
        {"_target_": "monai.transforms.ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 100, "b_min": -1}
        | {"b_max": 1}
    ],
    "augmentation": [],
    "encoder": {
        "_target_": "monai_mvreg.networks.encoders.PretrainedEncoder",
        "encoder": {
            "_target_": "monai.networks.nets.Regressor",
            **{"in_shape": [1, 16, 16, 16], "out_shape": [8], "channels": [4, 8], "strides": [4, 2]},
            **{"norm": "batch", "num_res_units": 1, "dropout": 0.2},
        },
        "learn": [],
    },
    "batch_size": 4,
    "learning_rate": 0.1,
    "epochs": 10,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 patients in 3 folds with one to three scans each; the target is the brightness."""
    folder = tmp_path_factory.mktemp("study")
    draw, rows = np.random.default_rng(0), []
    for patient in range(18):
        level = draw.uniform(20, 80)
        for visit in range(1 + patient % 3):
            name = f"scan_{len(rows):02d}.nii"
            voxels = draw.normal(level, 5, (20, 18, 16)).astype(np.float32)
            nib.save(nib.Nifti1Image(voxels, np.diag([3.0, 3.0, 3.0, 1.0])), folder / name)
            row = {"patient": f"p{patient}", "path": name, "day": 100 * visit, "target": f"{level:.3f}"}
            rows.append(row | {"fold": patient // 3 % 3})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


def run(data: Path, place: Path, *names: str, kind: str = "train", **overrides: Any) -> Any:
    """Run a config with more files on top, with its model and its embeddings in one place."""
    flow = ConfigWorkflow(
        [str(CONFIGS / f"{kind}.yaml"), *(str(CONFIGS / f"{name}.yaml") for name in names), str(data / "tiny.yaml")],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type="train" if kind == "train" else "infer",
        bundle_root=str(BUNDLE),
        dataset_dir=str(data),
        output_dir=str(place / kind),
        model_dir=str(place / "models"),
        **{"device": "$torch.device('cpu')", **({"embedding_cache": str(place / "cache")} if names else {})},
        **overrides,
    )
    flow.initialize()
    flow.run()
    return flow


@pytest.fixture(scope="module")
def frozen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("frozen")
    run(data, place, "frozen")
    return place


def model(place: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(place / "models/model.pt", weights_only=True))


def test_a_head_trained_from_embeddings_is_the_one_trained_from_images(
    data: Path, frozen: Path, tmp_path: Path
) -> None:
    run(data, tmp_path)
    from_images, from_embeddings = model(tmp_path), model(frozen)
    assert from_images.keys() == from_embeddings.keys()
    for name, tensor in from_images.items():
        torch.testing.assert_close(from_embeddings[name], tensor, rtol=1e-6, atol=1e-6)
    tables = [pd.read_csv(place / "train/predictions.csv") for place in (tmp_path, frozen)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)
    assert tables[0]["target_predicted"].std() > 1  # it has learned something that could differ


def test_a_second_run_computes_nothing_and_ends_alike(data: Path, frozen: Path) -> None:
    entries = {path.name: path.read_bytes() for path in (frozen / "cache").rglob("*.embedding")}
    first = model(frozen)
    assert len(entries) == len(pd.read_csv(data / "cohort.csv"))
    inodes = {path.name: path.stat().st_ino for path in (frozen / "cache").rglob("*.embedding")}
    run(data, frozen, "frozen")
    assert {path.name: path.stat().st_ino for path in (frozen / "cache").rglob("*.embedding")} == inodes
    assert all(torch.equal(tensor, first[name]) for name, tensor in model(frozen).items())


@pytest.mark.parametrize("names", [(), ("frozen",)])
@pytest.mark.parametrize("kind", ["evaluate", "inference"])
def test_evaluation_and_inference_read_images_with_the_file_or_without(
    kind: str, names: tuple[str, ...], data: Path, frozen: Path
) -> None:
    run(data, frozen, *names, kind=kind)
    found, expected = (
        pd.read_csv(frozen / name / "predictions.csv").set_index("patient")["target_predicted"]
        for name in (kind, "train")
    )
    pd.testing.assert_series_equal(found[expected.index], expected, rtol=1e-5)


def test_averaged_weights_and_embeddings_go_together(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path, "frozen", weight_averaging=0.1)
    run(data, tmp_path, kind="evaluate")
    tables = [pd.read_csv(tmp_path / kind / "predictions.csv") for kind in ("train", "evaluate")]
    pd.testing.assert_frame_equal(*tables, rtol=1e-5)


def test_an_encoder_that_learns_is_refused_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.delenv("MVREG_TRACEBACK", raising=False)
    with pytest.raises(Exception) as caught:
        run(data, tmp_path, "frozen", **{"encoder#learn": ["*"]})
    sys.excepthook(caught.type, caught.value, caught.tb)
    assert capsys.readouterr().err.rpartition("\nerror: ")[2] == (
        "expected a frozen encoder, that is PretrainedEncoder with learn: [], got PretrainedEncoder with trainable "
        "layers\n"
    )


def test_the_patients_are_those_of_training_from_images() -> None:
    frozen, train = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("frozen", "train"))
    for part in ("train", "validate"):
        assert frozen[f"+{part}"]["dataset"]["data"] == train[part]["dataset"]["data"]


@pytest.mark.parametrize("name", ["resnet50_mean", "vgg16_lstm", "mobilenetv2_attention"])
def test_it_suits_every_textbook_network(name: str, data: Path, tmp_path: Path) -> None:
    table = pd.read_csv(data / "cohort.csv").iloc[:12]
    draw = np.random.default_rng(1)
    for path in table["path"]:
        nib.save(nib.Nifti1Image(draw.normal(50, 9, (40, 36, 1)).astype(np.float32), np.eye(4)), tmp_path / path)
    table.to_csv(tmp_path / "cohort.csv", index=False)
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{part}.yaml") for part in ("train", "radiograph", name, "frozen")])
    parser.update({"bundle_root": str(BUNDLE), "dataset_dir": str(tmp_path), "pretrained": False})
    parser.update({"spatial_size": [32, 32], "embedding_cache": str(tmp_path / "cache"), "device": "cpu"})
    parser.update({"device": "$torch.device('cpu')", "batch_size": 2})
    batch = next(iter(parser.get_parsed_content("train#dataloader")))
    size = parser.get_parsed_content("embedding_size")
    assert batch["image"].shape[2] == size and batch["image"].ndim == 3
    network = parser.get_parsed_content("network")
    assert network(*(batch[key] for key in ("image", "mask", "time", "view"))).shape == (2, 1)
    network(batch["image"], batch["mask"]).sum().backward()
