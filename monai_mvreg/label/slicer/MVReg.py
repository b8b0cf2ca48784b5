"""3D Slicer's module: choose a patient, predict on the server, see number, timeline and map. Widgets alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ctk
import qt
import slicer
from MVRegLib import mrml_scene
from MVRegLib.label_client import LabelClient
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget


class MVReg(ScriptedLoadableModule):  # type: ignore[misc]
    """What Slicer's list of modules says."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        parent.title = "MVReg: a number per patient"
        parent.categories = ["Quantification"]
        parent.dependencies = []
        parent.contributors = ["monai_mvreg maintainers"]
        parent.helpText = "Predict a number from all scans of a patient, on a server that 'mvreg label' started."
        parent.acknowledgementText = (
            "Research use only. Not a medical device: this may not guide the care of a patient."
        )


class MVRegWidget(ScriptedLoadableModuleWidget):  # type: ignore[misc]
    """The panel; all that is done is in MVRegLib."""

    def setup(self) -> None:  # Slicer's name
        """Make the widgets."""
        super().setup()
        self.found: dict[str, list[Any]] = {}
        box = ctk.ctkCollapsibleButton()
        box.text = "Patient"
        self.layout.addWidget(box)
        form = qt.QFormLayout(box)
        self.server = qt.QLineEdit("http://127.0.0.1:8000")
        self.patient, self.saliency, self.scan = qt.QComboBox(), qt.QComboBox(), qt.QComboBox()
        self.saliency.addItems(["none", "gradcam", "occlusion"])
        self.stored = qt.QLineEdit()
        self.stored.placeholderText = "instead: the id of a patient whose scans the server has"
        refresh, run = qt.QPushButton("Look for patients in the scene"), qt.QPushButton("Predict")
        rows = [("Server", self.server), ("Patient", self.patient), ("", refresh), ("On the server", self.stored)]
        for name, widget in [*rows, ("Map", self.saliency), ("Map of scan", self.scan), ("", run)]:
            form.addRow(name, widget)
        self.words = qt.QLabel("")
        self.words.wordWrap = True
        self.table = slicer.qMRMLTableView()
        self.plot = slicer.qMRMLPlotView()
        self.plot.setMRMLScene(slicer.mrmlScene)
        for widget in (self.words, self.table, self.plot):
            self.layout.addWidget(widget)
        self.layout.addStretch(1)
        refresh.connect("clicked()", self.refresh)
        run.connect("clicked()", self.run)
        self.patient.connect("currentIndexChanged(int)", self.list_scans)
        self.refresh()

    def refresh(self) -> None:
        """List the patients of the scene."""
        self.found = mrml_scene.patients(slicer.mrmlScene)
        self.patient.clear()
        self.patient.addItems(list(self.found))
        self.list_scans()

    def list_scans(self, _index: int = 0) -> None:
        """List the scans that a map may be of."""
        self.scan.clear()
        self.scan.addItems(["the newest", *(node.GetName() for node in self.found.get(self.patient.currentText, []))])

    def run(self) -> None:
        """Predict and show; what goes wrong is shown too."""
        try:
            with slicer.util.WaitCursor(), tempfile.TemporaryDirectory() as folder:
                self.predict(Path(folder))
        except Exception as error:  # a window must not close over an error
            slicer.util.errorDisplay(str(error))

    def predict(self, folder: Path) -> None:
        """Ask the server, and show the answer."""
        client, saliency = LabelClient(self.server.text), self.saliency.currentText
        client.describe()
        if self.stored.text:
            reply, background = client.predict_stored(self.stored.text, saliency=saliency), None
        else:
            mapped = self.scan.currentIndex - 1 if self.scan.currentIndex > 0 else None
            reply, background = mrml_scene.predict_volumes(
                client, self.found.get(self.patient.currentText, []), folder, saliency=saliency, mapped=mapped
            )
        self.words.text = reply.in_words()
        table, chart = mrml_scene.show_table(slicer.mrmlScene, reply)
        self.table.setMRMLTableNode(table)
        self.plot.setMRMLPlotViewNode(mrml_scene.plot_view(slicer.mrmlScene, chart))
        if reply.volume is not None:
            mrml_scene.show_map(slicer.mrmlScene, reply, background, folder)
