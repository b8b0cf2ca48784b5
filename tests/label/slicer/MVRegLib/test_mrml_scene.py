"""Slicer's scene: its real data model (slicer-core, Slicer's own C++ without Qt) against the running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_server import DATES, LabelServer
from tiny_model import BUNDLE

from monai_mvreg.predict.prediction import Prediction
from monai_mvreg.predict.predictor import Predictor

pytest.importorskip("slicer_core", reason="slicer-core, Slicer without its windows, is not installed")

import slicer
import vtk
from MVRegLib import mrml_scene
from MVRegLib.label_client import LabelClient
from vtk.util.numpy_support import vtk_to_numpy


@pytest.fixture
def scene() -> Any:
    return slicer.vtkMRMLScene()


def load(scene: Any, path: Path) -> Any:
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", path.name.partition(".")[0])
    reader = slicer.vtkMRMLVolumeArchetypeStorageNode()
    reader.SetFileName(str(path))
    assert reader.ReadData(volume)
    return volume


@pytest.fixture
def volumes(scene: Any, label_server: LabelServer) -> list[Any]:
    return [load(scene, label_server.studies / f"P001_{date}.nii.gz") for date in DATES]


@pytest.fixture(scope="module")
def expected(label_server: LabelServer, tmp_path_factory: pytest.TempPathFactory) -> Prediction:
    folder = tmp_path_factory.mktemp("patient")
    for date in DATES:
        name = f"P001_{date}.nii.gz"
        (folder / name).write_bytes((label_server.studies / name).read_bytes())
    return Predictor.from_bundle(BUNDLE, models=label_server.models).predict_folder(folder)


@pytest.fixture
def client(label_server: LabelServer) -> LabelClient:
    return LabelClient(label_server.url)


def matrix_of(volume: Any) -> np.ndarray:
    made = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(made)
    return np.array([[made.GetElement(row, column) for column in range(4)] for row in range(4)])


def in_hierarchy(scene: Any, volume: Any, *, patient: str, date: str) -> None:
    """Put a volume where Slicer's DICOM module puts it."""
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    names = slicer.vtkMRMLSubjectHierarchyConstants
    level = names.GetSubjectHierarchyLevelAttributeName()
    items = {tree.GetItemName(child): child for child in range(100) if tree.GetItemName(child)}
    owner = items.get(patient) or tree.CreateSubjectItem(tree.GetSceneItemID(), patient)
    tree.SetItemAttribute(owner, level, names.GetDICOMLevelPatient())
    study = tree.CreateStudyItem(owner, "study")
    tree.SetItemAttribute(study, level, names.GetDICOMLevelStudy())
    tree.SetItemAttribute(study, names.GetDICOMStudyDateAttributeName(), date)
    tree.CreateItem(study, volume)


def test_volumes_without_a_patient_stand_together(scene: Any, volumes: list[Any]) -> None:
    assert mrml_scene.patients(scene) == {mrml_scene.UNNAMED: volumes}


def test_volumes_are_of_the_patient_of_the_subject_hierarchy(scene: Any, volumes: list[Any]) -> None:
    in_hierarchy(scene, volumes[0], patient="A", date="20200101")
    in_hierarchy(scene, volumes[1], patient="B", date="20200101")
    found = mrml_scene.patients(scene)
    assert list(found.values()) == [[volumes[0]], [volumes[1]], [volumes[2]]]
    assert [name[0] for name in found] == ["A", "B", mrml_scene.UNNAMED[0]]


def test_the_day_is_that_of_the_dicom_study_before_that_in_the_name(scene: Any, volumes: list[Any]) -> None:
    in_hierarchy(scene, volumes[0], patient="A", date="20190607")
    assert [mrml_scene.date_of_volume(volume) for volume in volumes] == ["2019-06-07", *DATES[1:]]


def test_files_on_their_way_do_not_tell_the_patient(scene: Any, volumes: list[Any], tmp_path: Path) -> None:
    volumes[2].SetName("Mustermann")
    names = [file.name for file in mrml_scene.export(volumes, tmp_path)]
    assert names == [f"scan-0_{DATES[0]}.nrrd", f"scan-1_{DATES[1]}.nrrd", "scan-2.nrrd"]
    assert not [file for file in tmp_path.iterdir() if b"Mustermann" in file.read_bytes()]


def test_a_volume_without_voxels_cannot_be_sent(scene: Any, tmp_path: Path) -> None:
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    with pytest.raises(OSError, match="volume 0"):
        mrml_scene.export([empty], tmp_path)


def test_volumes_of_the_scene_give_the_number_of_mvreg_predict(
    client: LabelClient, volumes: list[Any], expected: Prediction, tmp_path: Path
) -> None:
    reply, background = mrml_scene.predict_volumes(client, volumes[::-1], tmp_path)
    assert reply.prediction["numbers"][0]["value"] == pytest.approx(expected.numbers[0].value, rel=1e-6)
    weights = [scan["weight"] for scan in reply.prediction["scans"]]
    assert weights == pytest.approx([scan.weight for scan in expected.scans], rel=1e-6) and background is None


def test_the_timeline_holds_each_scan_by_its_day(
    scene: Any, client: LabelClient, volumes: list[Any], expected: Prediction, tmp_path: Path
) -> None:
    reply, _ = mrml_scene.predict_volumes(client, volumes, tmp_path)
    for _ in range(2):  # the second answer takes the place of the first
        table, chart = mrml_scene.show_table(scene, reply)
    found = {
        name: [float(table.GetTable().GetColumnByName(name).GetValue(row)) for row in range(table.GetNumberOfRows())]
        for name in ("day", "weight", "contribution")
    }
    assert found["day"] == [0, 60, 300]
    assert found["weight"] == pytest.approx([scan.weight for scan in expected.scans], rel=1e-6)
    assert found["contribution"] == pytest.approx(
        [(scan.contributions or (0,))[0] for scan in expected.scans], rel=1e-5
    )
    assert scene.GetNumberOfNodesByClass("vtkMRMLPlotSeriesNode") == chart.GetNumberOfPlotSeriesNodes() == 1
    series = chart.GetNthPlotSeriesNode(0)
    assert (series.GetXColumnName(), series.GetYColumnName(), series.GetTableNodeID()) == (
        "day",
        "contribution",
        table.GetID(),
    )
    assert "volume (mL)" in chart.GetTitle()
    assert mrml_scene.plot_view(scene, chart).GetPlotChartNodeID() == chart.GetID()


def test_an_only_scan_has_no_contribution(scene: Any, client: LabelClient, volumes: list[Any], tmp_path: Path) -> None:
    reply, _ = mrml_scene.predict_volumes(client, volumes[:1], tmp_path)
    table, _ = mrml_scene.show_table(scene, reply)
    assert np.isnan(table.GetTable().GetColumnByName("contribution").GetValue(0))


def test_the_map_lies_over_its_scan_voxel_by_voxel(
    scene: Any, client: LabelClient, volumes: list[Any], tmp_path: Path
) -> None:
    view = scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode", "Red")
    reply, background = mrml_scene.predict_volumes(client, volumes, tmp_path, saliency="occlusion", mapped=1)
    node = mrml_scene.show_map(scene, reply, background, tmp_path)
    assert background is volumes[1]
    np.testing.assert_allclose(matrix_of(node), matrix_of(background), atol=1e-6)
    assert node.GetImageData().GetDimensions() == background.GetImageData().GetDimensions()
    assert (view.GetBackgroundVolumeID(), view.GetForegroundVolumeID()) == (background.GetID(), node.GetID())
    values = vtk_to_numpy(node.GetImageData().GetPointData().GetScalars())
    display = node.GetDisplayNode()
    assert display.GetLevel() == 0 and display.GetWindow() == pytest.approx(2 * np.abs(values).max())
    colours = display.GetColorNode()
    low, middle, high = (colours.GetLookupTable().GetTableValue(at) for at in (0, 128, 255))
    assert low[2] == high[0] == 1 and low[3] == high[3] == 1 and middle[3] < 0.01
    assert mrml_scene.patients(scene) == {mrml_scene.UNNAMED: volumes}  # a map is no scan


def test_an_answer_without_a_map_shows_none(
    scene: Any, client: LabelClient, volumes: list[Any], tmp_path: Path
) -> None:
    reply, _ = mrml_scene.predict_volumes(client, volumes, tmp_path)
    with pytest.raises(OSError, match="holds none"):
        mrml_scene.show_map(scene, reply, None, tmp_path)


def test_the_stock_extension_names_a_segment_by_the_number(
    scene: Any, label_server: LabelServer, volumes: list[Any], expected: Prediction, tmp_path: Path
) -> None:
    """What MONAI Label's own extension does with an answer (``updateSegmentationMask``), by Slicer's own logic."""
    params = {"scans": "patient", "saliency": "gradcam", "result_extension": ".nrrd", "result_dtype": "uint8"}
    image = f"P001_{DATES[0]}"
    names = sorted(label_server.infer(params, image=image).json()["label_names"].items(), key=lambda item: item[1])
    (tmp_path / "labels.nrrd").write_bytes(label_server.infer(params, image=image, output="image").content)
    labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    reader = slicer.vtkMRMLNRRDStorageNode()
    reader.SetFileName(str(tmp_path / "labels.nrrd"))
    assert reader.ReadData(labels)
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
    wanted = vtk.vtkStringArray()
    for name, _ in names:
        wanted.InsertNextValue(name)
    rules = slicer.vtkSegmentationConverterFactory.GetInstance()  # as the module does when Slicer starts
    rules.RegisterConverterRule(slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule())
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.ImportLabelmapToSegmentationNode(labels, segmentation, wanted)
    made = segmentation.GetSegmentation()
    found = [made.GetNthSegment(at).GetName() for at in range(made.GetNumberOfSegments())]
    assert found == [name for name, _ in names]
    assert all(f"{expected.numbers[0].value:.4g} mL" in name for name in found)
