"""The widgets of 3D Slicer's module, by stand-ins for Qt and Slicer: that it loads, and what its buttons do.

What a stand-in does says nothing of how the real one looks: no window was opened here.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from MVRegLib.label_client import Reply, ServerError

NUMBER = {"name": "volume", "unit": "mL", "value": 52.0, "low": None, "high": None, "confidence": None}
WHOLE = {"numbers": [NUMBER], "left_out": [], "warnings": [], "scans": []}


class StandInWidget:
    """Any widget or layout: takes every call, keeps texts and items, and calls what is connected."""

    def __init__(self, text: Any = "", *_: Any) -> None:
        self.text, self.items, self.currentIndex = text, [], 0
        self.connected: dict[str, Callable[..., Any]] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    @property
    def currentText(self) -> str:
        return self.items[self.currentIndex] if self.items else ""

    def addItems(self, items: list[str]) -> None:
        self.items += items

    def clear(self) -> None:
        self.items, self.currentIndex = [], 0

    def connect(self, event: str, function: Callable[..., Any]) -> None:
        self.connected[event] = function

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given: self.calls.append((name, given))


class StandInModule:
    """ScriptedLoadableModule and its widget."""

    def __init__(self, parent: Any = None) -> None:
        self.parent, self.layout = parent, StandInWidget()

    def setup(self) -> None:
        """As Slicer's: nothing that is needed here."""


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    shown: list[str] = []
    slicer, scripted, scene = (types.ModuleType(name) for name in ("slicer", "scripted", "MVRegLib.mrml_scene"))
    slicer.mrmlScene = "the scene"  # type: ignore[attr-defined]
    slicer.qMRMLTableView = slicer.qMRMLPlotView = StandInWidget  # type: ignore[attr-defined]
    slicer.util = types.SimpleNamespace(WaitCursor=nullcontext, errorDisplay=shown.append)  # type: ignore[attr-defined]
    scripted.ScriptedLoadableModule = scripted.ScriptedLoadableModuleWidget = StandInModule  # type: ignore[attr-defined]
    widgets = types.ModuleType("qt")
    for name in ("QFormLayout", "QLineEdit", "QComboBox", "QPushButton", "QLabel", "ctkCollapsibleButton"):
        setattr(widgets, name, StandInWidget)
    asked: list[Any] = []
    volume = types.SimpleNamespace(GetName=lambda: "t1")

    def predict_volumes(client: Any, volumes: list[Any], folder: Any, **wish: Any) -> tuple[Reply, Any]:
        asked.append((volumes, wish))
        mapped = wish["saliency"] != "none"
        return Reply(WHOLE, [], "scan-0" if mapped else None, b"x" if mapped else None), volumes[0]

    scene.patients = lambda scene: {"A": [volume], "B": []}  # type: ignore[attr-defined]
    scene.predict_volumes = predict_volumes  # type: ignore[attr-defined]
    scene.show_table = lambda scene, reply: ("table", "chart")  # type: ignore[attr-defined]
    scene.plot_view = lambda scene, chart: "view"  # type: ignore[attr-defined]
    scene.show_map = lambda *given: asked.append(("map", given[2]))  # type: ignore[attr-defined]
    made = {"slicer": slicer, "slicer.ScriptedLoadableModule": scripted, "qt": widgets, "ctk": widgets}
    for name, module in {**made, "MVRegLib.mrml_scene": scene}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("MVRegLib.mrml_scene", scene, raising=False)
    monkeypatch.delitem(sys.modules, "MVReg", raising=False)
    yield types.SimpleNamespace(module=importlib.import_module("MVReg"), shown=shown, asked=asked, volume=volume)
    sys.modules.pop("MVReg", None)


@pytest.fixture
def widget(stand_ins: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(stand_ins.module.LabelClient, "describe", lambda self: "volume")
    made = stand_ins.module.MVRegWidget()
    made.setup()
    return made


def test_slicer_finds_a_module_of_the_name_of_the_file(stand_ins: types.SimpleNamespace) -> None:
    parent = types.SimpleNamespace()
    stand_ins.module.MVReg(parent)
    assert "number per patient" in parent.title and "Not a medical device" in parent.acknowledgementText


def test_the_patients_of_the_scene_and_their_scans_are_listed(widget: Any) -> None:
    assert widget.patient.items == ["A", "B"] and widget.scan.items == ["the newest", "t1"]
    widget.patient.currentIndex = 1
    widget.patient.connected["currentIndexChanged(int)"](1)
    assert widget.scan.items == ["the newest"]


def test_predict_shows_number_and_timeline(widget: Any, stand_ins: types.SimpleNamespace) -> None:
    widget.run()
    assert stand_ins.shown == [] and widget.words.text == "volume: 52 mL"
    assert stand_ins.asked == [([stand_ins.volume], {"saliency": "none", "mapped": None})]
    assert ("setMRMLTableNode", ("table",)) in widget.table.calls
    assert ("setMRMLPlotViewNode", ("view",)) in widget.plot.calls


def test_a_map_is_laid_over_the_scan_that_was_chosen(widget: Any, stand_ins: types.SimpleNamespace) -> None:
    widget.saliency.currentIndex, widget.scan.currentIndex = 1, 1
    widget.run()
    assert stand_ins.asked[0][1] == {"saliency": "gradcam", "mapped": 0}
    assert stand_ins.asked[1] == ("map", stand_ins.volume)


def test_a_patient_of_the_server_is_asked_for_by_name(
    widget: Any, stand_ins: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def predict_stored(self: Any, patient: str, *, saliency: str) -> Reply:
        asked.append((self.url, patient, saliency))
        return Reply(WHOLE, [], None, None)

    monkeypatch.setattr(stand_ins.module.LabelClient, "predict_stored", predict_stored)
    widget.stored.text = "P001"
    widget.run()
    assert asked == [("http://127.0.0.1:8000", "P001", "none")] and stand_ins.shown == []


def test_what_the_server_refuses_is_shown(
    widget: Any, stand_ins: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any) -> str:
        raise ServerError("the server refuses (400): expected one patient")

    monkeypatch.setattr(stand_ins.module.LabelClient, "describe", refuse)
    widget.run()
    assert stand_ins.shown == ["the server refuses (400): expected one patient"] and widget.words.text == ""
