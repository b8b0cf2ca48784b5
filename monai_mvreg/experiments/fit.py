"""Table -> trained model, from Python: the bundle's own training, run in this process, and what it leaves."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import monai.bundle

from monai_mvreg.bundle_folder import find_bundle
from monai_mvreg.cohort.table import Columns, read_cohort
from monai_mvreg.errors import user_error
from monai_mvreg.predict.prediction import NoPrediction, Prediction
from monai_mvreg.predict.predictor import Predictor
from monai_mvreg.share.packing import pack_bundle, unpack_bundle


@dataclass(frozen=True)
class FittedModel:
    """A trained model, and how it was trained; made by :func:`fit`, where the example is.

    ``folder`` holds all that the training wrote: ``models``, ``train.log``, and in ``eval`` a report with the figures
    of the validation patients. ``files`` and ``settings`` are what the training read besides the ``table`` and its
    ``columns``.

    Example:
        >>> FittedModel(Path("study"), Path("cohort.csv"), Columns(), (), {}).report.as_posix()
        'study/eval/report.html'
    """

    folder: Path
    table: Path
    columns: Columns
    files: tuple[Path, ...]
    settings: Mapping[str, Any]

    @property
    def report(self) -> Path:
        """The HTML report on the validation patients, who chose the best epoch."""
        return self.folder / "eval" / "report.html"

    def predictor(self, *, device: str = "cpu") -> Predictor:
        """Read the model.

        Args:
            device: a name of torch, ``cpu`` or ``cuda``.

        Returns:
            What predicts further patients, from a table or a folder.
        """
        return Predictor.from_bundle(find_bundle(), models=self.folder / "models", device=device)

    def predict(self, table: str | Path, *, device: str = "cpu") -> list[Prediction | NoPrediction]:
        """Predict the patients of a table with the columns of the training; targets and folds are not read.

        Args:
            table: one row per scan; paths in it start at its folder.
            device: as for :meth:`predictor`.

        Returns:
            One entry per patient, in the order of the table; a patient without a readable scan has a reason instead.

        Raises:
            ValueError: if the table lacks a column, or a row of it is wrong.
        """
        home = Path(table).resolve().parent
        cohort = read_cohort(str(table), self.columns.without_outcome(), images=str(home))
        return list(self.predictor(device=device).predict_cohort(cohort, home=home))

    def evaluate(self, folds: Sequence[str]) -> dict[str, Any]:
        """Evaluate the model on folds that the training kept apart as ``test_folds``.

        Args:
            folds: names of the folds.

        Returns:
            What ``metrics.json`` holds: for each target its metrics, with intervals over patients. The report is in the
            folder ``test`` of the model.

        Raises:
            ValueError: if the model has learned from patients of these folds.
        """
        out = self.folder / "test"
        _run("evaluate", self, {"evaluate_folds": list(folds), "output_dir": str(out)})
        metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        return metrics

    def save(self, folder: str | Path) -> None:
        """Write what predicts further patients, and nothing of the patients it was trained on, into one folder.

        Args:
            folder: a new or an empty folder, for :meth:`Predictor.from_bundle` and ``mvreg predict --bundle``.

        Raises:
            ValueError: if the folder is not empty.
        """
        with tempfile.TemporaryDirectory() as home:
            pack = Path(home) / "model.zip"
            pack_bundle(find_bundle(), self.folder / "models", pack)
            unpack_bundle(pack, Path(folder))


def fit(
    table: str | Path,
    columns: Columns,
    *,
    out: str | Path,
    presets: Sequence[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
) -> FittedModel:
    """Train a model on a table of scans, as ``monai.bundle run`` does with ``train.yaml``.

    The log is in ``train.log``. Python, numpy and torch are seeded by the training. An earlier model in the folder is
    replaced when the training has ended.

    Args:
        table: CSV with one row per scan; paths in it start at its folder.
        columns: which column holds what; at least one target.
        out: the folder for everything that is written.
        presets: files of settings on top of ``train.yaml``: names of the bundle's own, such as ``"radiograph"`` or
            ``"survival"``, or paths.
        settings: by the names in ``train.yaml``, ``{"epochs": 20, "pool": {"_target_": "..."}}``.

    Returns:
        The best model by validation.

    Raises:
        FileNotFoundError: if the table, a scan or a preset is missing.
        ValueError: if a setting is unknown or wrong, or the table is.

    Example:
        >>> import tempfile
        >>> columns = Columns(day="day", target=("growth",), unit="unit", fold="fold")
        >>> quick = {"epochs": 1, "spatial_size": [16, 16, 16], "validation_folds": ["0", "1", "2"]}
        >>> with tempfile.TemporaryDirectory() as out:
        ...     model = fit("cohort.csv", columns, out=out, settings=quick)
        ...     model.save(f"{out}/saved")
        ...     prediction = Predictor.from_bundle(f"{out}/saved").predict_folder("patient")
        >>> prediction.numbers[0].unit
        'mm/a'
    """
    files = tuple(_preset(preset) for preset in presets)
    model = FittedModel(Path(out).resolve(), Path(table).resolve(), columns, files, dict(settings or {}))
    _run("train", model, {})
    return model


def _preset(preset: str | Path) -> Path:
    named = find_bundle() / "configs" / f"{preset}.yaml"
    path = named if named.is_file() else Path(preset)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in named.parent.glob("*.yaml")))
        raise FileNotFoundError(f"expected a preset, a path or one of {known}, got {str(preset)!r}")
    return path.resolve()


def _run(config: str, model: FittedModel, further: Mapping[str, Any]) -> None:
    """Run one of the bundle's configs in this process; what a user can mend is raised without MONAI's traceback."""
    configs = find_bundle() / "configs"
    settings = {
        "bundle_root": str(model.folder),
        "dataset_dir": str(model.table.parent),
        "cohort_file": str(model.table),
        "target": list(model.columns.target),
        "columns": {"_target_": f"{Columns.__module__}.{Columns.__name__}", **asdict(model.columns)},
        **({} if model.columns.event is None else {"event": model.columns.event}),
        **model.settings,
        **further,
    }
    # A setting of None would be taken for one that was not given.
    texts = {name: "$None" if value is None else value for name, value in settings.items()}
    hook = sys.excepthook
    model.folder.mkdir(parents=True, exist_ok=True)
    try:
        with _logged_to(model.folder / f"{config}.log"):
            monai.bundle.run(
                config_file=[str(configs / f"{config}.yaml"), *map(str, model.files)],
                logging_file=str(configs / "logging.conf"),
                **json.loads(json.dumps(texts)),
            )
    except Exception as error:
        cause = user_error(error)
        if cause is None:
            raise
        raise cause from None
    finally:
        sys.excepthook = hook  # the bundle's own prints one line and ends


@contextlib.contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Let what is logged and printed go to a file, and leave the logging of the caller as it was."""
    root, shown = logging.getLogger(), sys.stdout
    handlers, level = root.handlers[:], root.level
    with path.open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        _move_logs(shown, log)
        try:
            yield
        finally:
            root.handlers[:], root.level = handlers, level
            _move_logs(log, shown)


def _move_logs(source: TextIO, target: TextIO) -> None:
    """Let all handlers of loggers that write to one stream write to another."""
    for logger in [logging.getLogger(), *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", []):
            if isinstance(handler, logging.StreamHandler) and handler.stream is source:
                handler.setStream(target)
