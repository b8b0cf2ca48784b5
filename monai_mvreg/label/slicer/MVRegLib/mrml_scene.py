"""Slicer's scene: which volumes are of which patient, files of them, and what is shown of an answer. No widgets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from MVRegLib.label_client import LabelClient, Reply

UNNAMED = "all volumes of the scene without a patient"
_OURS = "MVReg.saliency"  # an attribute of the maps, which are no scans
_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)-?(\d\d)-?(\d\d)(?!\d)")


def patients(scene: Any) -> dict[str, list[Any]]:
    """The volumes of each patient of the subject hierarchy, where DICOM was loaded; others together at the end."""
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    found: dict[str, list[Any]] = {}
    others = []
    for volume in _nodes(scene, "vtkMRMLScalarVolumeNode"):
        if volume.GetClassName() != "vtkMRMLScalarVolumeNode" or volume.GetAttribute(_OURS):
            continue  # label maps are scalar volumes too
        item = tree.GetItemByDataNode(volume)
        level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelPatient()
        patient = tree.GetItemAncestorAtLevel(item, level) if item else 0
        if patient:
            found.setdefault(f"{tree.GetItemName(patient)} ({patient})", []).append(volume)
        else:
            others.append(volume)
    return {**found, UNNAMED: others} if others else found


def date_of_volume(volume: Any) -> str:
    """The day of a volume as 2024-03-31: that of its DICOM study, or one in its name; empty if there is none."""
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume.GetScene())
    names = slicer.vtkMRMLSubjectHierarchyConstants
    item = tree.GetItemByDataNode(volume)
    date = (
        tree.GetAttributeFromItemAncestor(item, names.GetDICOMStudyDateAttributeName(), names.GetDICOMLevelStudy())
        if item
        else ""
    )
    match = _DATE.search(date or "") or _DATE.search(volume.GetName() or "")
    return "-".join(match.groups()) if match else ""


def export(volumes: Sequence[Any], folder: Path) -> list[Path]:
    """Write volumes as NRRD: their names hold a number and the day, and nothing of the patient.

    Raises:
        OSError: if a volume cannot be written.
    """
    files = []
    for number, volume in enumerate(volumes):
        file = folder / "_".join(filter(None, (f"scan-{number}", date_of_volume(volume))))
        file = file.with_name(f"{file.name}.nrrd")
        writer = slicer.vtkMRMLNRRDStorageNode()
        writer.SetFileName(str(file))
        if not writer.WriteData(volume) or not file.is_file():  # of a volume without voxels it tells success
            raise OSError(f"expected a volume that can be written as NRRD, volume {number} of the patient is none")
        files.append(file)
    return files


def predict_volumes(
    client: LabelClient, volumes: Sequence[Any], folder: Path, *, saliency: str = "none", mapped: int | None = None
) -> tuple[Reply, Any]:
    """Predict one patient from volumes of the scene.

    Args:
        client: the server.
        volumes: the patient's.
        folder: an empty one for files on their way, the caller's to delete.
        saliency: ``none``, ``gradcam`` or ``occlusion``.
        mapped: the number of the volume that the map is of; by default the newest.

    Returns:
        The answer, and the volume that its map is of, None without a map.
    """
    files = export(volumes, folder)
    names = [file.stem for file in files]
    wanted = None if mapped is None else names[mapped]
    reply = client.predict_files(files, saliency=saliency, mapped=wanted)
    return reply, None if reply.mapped is None else volumes[names.index(reply.mapped)]


def show_table(scene: Any, reply: Reply) -> tuple[Any, Any]:
    """Show the timeline: a table of the scans by day, and a chart of how much each moves the first number.

    Returns:
        The nodes of the table and of the chart; those of an earlier answer are used again.
    """
    number = reply.prediction["numbers"][0]
    unit = f" ({number['unit']})" * (number["unit"] != "1")
    columns: dict[str, list[Any]] = {name: [] for name in ("scan", "day", "weight", "contribution")}
    for at, scan in enumerate(reply.prediction["scans"]):  # Slicer's Python may be 3.9
        columns["scan"].append(reply.images[at])
        columns["day"].append(scan["day"])
        columns["weight"].append(scan["weight"])
        columns["contribution"].append((scan["contributions"] or [float("nan")])[0])
    table = _only(scene, "vtkMRMLTableNode", "MVReg scans")
    table.RemoveAllColumns()
    for name, values in columns.items():
        array = vtk.vtkStringArray() if name == "scan" else vtk.vtkDoubleArray()
        array.SetName(name)
        for value in values:
            array.InsertNextValue(value)
        table.AddColumn(array)
    series = _only(scene, "vtkMRMLPlotSeriesNode", "MVReg contributions")
    series.SetAndObserveTableNodeID(table.GetID())
    series.SetXColumnName("day")
    series.SetYColumnName("contribution")
    series.SetLabelColumnName("scan")
    series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
    series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle)
    chart = _only(scene, "vtkMRMLPlotChartNode", "MVReg timeline")
    chart.RemoveAllPlotSeriesNodeIDs()
    chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitle(f"{number['name']}{unit}: how much lower without each scan")
    chart.SetXAxisTitle("days since the first scan")
    chart.SetYAxisTitle(f"contribution{unit}")
    return table, chart


def plot_view(scene: Any, chart: Any) -> Any:
    """The node of a view of our own that shows a chart."""
    view = _only(scene, "vtkMRMLPlotViewNode", "MVReg plot")
    view.SetPlotChartNodeID(chart.GetID())
    return view


def show_map(scene: Any, reply: Reply, background: Any, folder: Path) -> Any:
    """Lay the map of an answer over its scan in all slice views: red raises the number, blue lowers it.

    Args:
        scene: Slicer's.
        reply: an answer with a map.
        background: the volume of the scan that the map is of; None leaves what is shown.
        folder: for the file of the map, the caller's to delete.

    Returns:
        The node of the map.

    Raises:
        OSError: if the map cannot be read.
    """
    file = folder / "saliency.nrrd"
    file.write_bytes(reply.volume or b"")
    node = _only(scene, "vtkMRMLScalarVolumeNode", "MVReg saliency")
    node.SetAttribute(_OURS, "1")
    reader = slicer.vtkMRMLNRRDStorageNode()
    reader.SetFileName(str(file))
    if not reply.volume or not reader.ReadData(node):
        raise OSError("expected a map as NRRD, the answer holds none")
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    largest = float(abs(vtk_to_numpy(node.GetImageData().GetPointData().GetScalars())).max()) or 1.0
    display.SetAndObserveColorNodeID(_colours(scene).GetID())
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(2 * largest, 0.0)
    for view in _nodes(scene, "vtkMRMLSliceCompositeNode"):
        if background is not None:
            view.SetBackgroundVolumeID(background.GetID())
        view.SetForegroundVolumeID(node.GetID())
        view.SetForegroundOpacity(0.5)
    return node


def _colours(scene: Any) -> Any:
    """Blue over nothing to red."""
    colours = _only(scene, "vtkMRMLColorTableNode", "MVReg blue and red")
    colours.SetTypeToUser()
    colours.SetNumberOfColors(256)
    for at in range(256):
        share = (at - 127.5) / 127.5
        colours.SetColor(at, f"{share:+.2f}", float(share > 0), 0.0, float(share < 0), abs(share))
    return colours


def _only(scene: Any, kind: str, name: str) -> Any:
    """The node of ours of this name, made if it is not there."""
    found = [node for node in _nodes(scene, kind) if node.GetName() == name]
    return found[0] if found else scene.AddNewNodeByClass(kind, name)


def _nodes(scene: Any, kind: str) -> list[Any]:
    return [scene.GetNthNodeByClass(at, kind) for at in range(scene.GetNumberOfNodesByClass(kind))]
