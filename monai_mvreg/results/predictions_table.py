"""Read and write ``predictions.csv``, one row per patient, and give its columns by name.

The header is ``patient, fold``, the numbers, ``unit, scans, days, weights``, then ``group_<name>`` for each subgroup.
The numbers of each target are ``<target>, <target>_predicted`` and, where they are predicted or fitted,
``<target>_spread`` and ``<target>_low, <target>_high``. Those of a time to event are the columns of time and event,
``log_risk`` and, once curves are fitted, ``median_days, risk_<day>, log_hazard``. An empty cell is an unknown number;
texts stay as they are, "NA" and "007" too. Other columns are kept as texts.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from monai_mvreg.cache.atomic import atomic_write
from monai_mvreg.metrics.bootstrap import Array
from monai_mvreg.results.calibration import mean_log_hazard
from monai_mvreg.results.cells import Texts, as_lists, as_numbers, as_text, as_texts

_ALWAYS = ("patient", "fold", "unit", "scans", "days", "weights")
_PREDICTED, _SPREAD, _LOW, _HIGH = "_predicted", "_spread", "_low", "_high"
_LOG_RISK, _MEDIAN, _LOG_HAZARD = "log_risk", "median_days", "log_hazard"
_RISK = re.compile(r"risk_(\d[\d.e+]*)")
_GROUP = "group_"


@dataclass(frozen=True, eq=False)
class PredictionsTable:
    """Predictions of patients, one row each, as ``predictions.csv`` holds them.

    Args:
        frame: the columns above, in any order but that time and event stand before ``log_risk``. Numbers may be given
            as texts; they become float64, NaN where unknown.

    Raises:
        ValueError: if a column is missing or there twice, a cell holds no number where one is expected, a patient has
            two rows, or units differ. Rows are counted from 1 below the header; no patient is named.

    Example:
        >>> cells = {"patient": ["007", "NA"], "fold": "0", "ef": [50.0, 60.0], "ef_predicted": [52.5, 60.0]}
        >>> cells |= {"unit": "%", "scans": [1, 2], "days": ["0", "0;30"], "weights": ["1", "0.25;0.75"]}
        >>> table = PredictionsTable(pd.DataFrame(cells))
        >>> table.targets, table.predicted("ef").tolist(), table.days
        (('ef',), [52.5, 60.0], ((0.0,), (0.0, 30.0)))
    """

    frame: pd.DataFrame

    def __post_init__(self) -> None:
        for name in _ALWAYS:
            if name not in self._names:
                raise ValueError(f"predictions: expected a column {name}, got {', '.join(self._names) or 'none'}")
        if twice := sorted({name for name in self._names if self._names.count(name) > 1}):
            raise ValueError(f"predictions: expected each column once, got {', '.join(twice)} twice")
        numbers = self._number_columns
        columns = {name: (as_numbers if name in numbers else as_texts)(self.frame[name], name) for name in self._names}
        object.__setattr__(self, "frame", pd.DataFrame(columns))
        self._check_rows()

    def __len__(self) -> int:
        """Count the patients ``P``."""
        return len(self.frame)

    @classmethod
    def read(cls, path: Path) -> PredictionsTable:
        r"""Read ``predictions.csv``.

        Args:
            path: the file.

        Returns:
            The table; each number is the float64 nearest to its text.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: as the class, with the path.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> header = "patient,fold,ef,ef_predicted,unit,scans,days,weights"
            >>> with TemporaryDirectory() as folder:
            ...     file = Path(folder) / "predictions.csv"
            ...     _ = file.write_text(header + "\nNA,0,,52.1,%,1,0,1")
            ...     table = PredictionsTable.read(file)
            >>> table.patient.tolist(), table.measured("ef").tolist(), table.predicted("ef").tolist()
            (['NA'], [nan], [52.1])
        """
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                header, *rows = [row for row in csv.reader(file) if row] or [[]]
            for place, row in enumerate(rows, start=1):
                if len(row) != len(header):
                    raise ValueError(f"row {place}: expected {len(header)} cells as in the header, got {len(row)}")
            return cls(pd.DataFrame(rows, columns=header, dtype=object))
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}: {error}") from None

    def write(self, path: Path) -> None:
        """Write ``predictions.csv``, whole or not at all; :meth:`read` gives the same texts and float64 numbers.

        Args:
            path: the file; folders above it are made.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> cells = {"patient": ["a"], "fold": "0", "ef": np.nan, "ef_predicted": 0.1, "unit": "%", "scans": 1}
            >>> with TemporaryDirectory() as folder:
            ...     PredictionsTable(pd.DataFrame(cells | {"days": "0", "weights": "1"})).write(Path(folder) / "p.csv")
            ...     (Path(folder) / "p.csv").read_text().splitlines()[1]
            'a,0,,0.1,%,1,0,1'
        """
        numbers = self._number_columns
        columns = [map(as_text, self.frame[name]) if name in numbers else self.frame[name] for name in self._names]
        with atomic_write(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self._names, *zip(*columns, strict=True)])

    @property
    def is_time_to_event(self) -> bool:
        """Whether a time to event was predicted, not numbers."""
        return _LOG_RISK in self._names

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Names of the predicted numbers; none for a time to event."""
        if self.is_time_to_event:
            return ()
        return tuple(
            name for name in self._names if f"{name}{_PREDICTED}" in self._names and not name.startswith(_GROUP)
        )

    @cached_property
    def outcome(self) -> tuple[str, str]:
        """Names of the columns of time, in days, and event, 1 or 0 for censored.

        Raises:
            ValueError: if numbers were predicted.
        """
        if not self.is_time_to_event:
            raise ValueError(f"predictions: expected a time to event, got {', '.join(self.targets) or 'no targets'}")
        before = [name for name in self._names[: self._names.index(_LOG_RISK)] if name not in _ALWAYS]
        if len(before) != 2:
            raise ValueError(
                f"predictions: expected two columns before log_risk, time and event, got {', '.join(before) or 'none'}"
            )
        return before[0], before[1]

    @property
    def patient(self) -> Texts:
        """Key ``(P,)`` of each patient."""
        return self._text("patient")

    @property
    def fold(self) -> Texts:
        """Part of the cohort ``(P,)`` that each patient belongs to."""
        return self._text("fold")

    @property
    def unit(self) -> str:
        """Unit of the targets, ``"1"`` for none, ``"d"`` for a time to event; empty without patients."""
        return str(next(iter(self.frame["unit"]), ""))

    @property
    def scans(self) -> npt.NDArray[np.int64]:
        """Number of scans ``(P,)`` of each patient."""
        return self._number("scans").astype(np.int64)

    @cached_property
    def days(self) -> tuple[tuple[float, ...], ...]:
        """Days of each patient's scans, in the order of the file."""
        return as_lists(self.frame["days"], "days")

    @cached_property
    def days_spanned(self) -> Array:
        """Days ``(P,)`` from the first scan to the last."""
        return np.array([max(days) - min(days) for days in self.days], dtype=np.float64)

    @cached_property
    def weights(self) -> tuple[tuple[float, ...], ...]:
        """Weight of each patient's scans, in the order of :attr:`days`."""
        return as_lists(self.frame["weights"], "weights")

    @property
    def groups(self) -> dict[str, Texts]:
        """What each subgroup's column ``(P,)`` says of the patients, by its name."""
        return {name.removeprefix(_GROUP): self._text(name) for name in self._names if name.startswith(_GROUP)}

    def measured(self, name: str) -> Array:
        """Give measured values.

        Args:
            name: of a target, or of the time or the event.

        Returns:
            ``(P,)`` in the unit of the target, days or 0 and 1; NaN where unknown.

        Raises:
            ValueError: if there is no such target.
        """
        known = self.outcome if self.is_time_to_event else self.targets
        if name not in known:
            raise ValueError(f"predictions: expected one of {', '.join(known) or 'no targets'}, got {name!r}")
        return self._number(name)

    def predicted(self, target: str) -> Array:
        """Give the predictions ``(P,)`` of a target, in its unit."""
        return self._number(f"{target}{_PREDICTED}")

    def spread(self, target: str) -> Array:
        """Give the predicted spread ``(P,)`` of a target, in its unit; ones where none is predicted."""
        name = f"{target}{_SPREAD}"
        return self._number(name) if name in self.frame else np.ones(len(self))

    def interval(self, target: str) -> tuple[Array, Array] | None:
        """Give both ends ``(P,)`` of the intervals of a target, in its unit; ``None`` if none were fitted."""
        if f"{target}{_LOW}" not in self.frame:
            return None
        return self._number(f"{target}{_LOW}"), self._number(f"{target}{_HIGH}")

    @property
    def label(self) -> Array:
        """Measured time in days and event, 1 or 0 for censored, ``(P, 2)``; NaN where unknown."""
        return np.stack([self._number(name) for name in self.outcome], axis=1)

    @property
    def log_risk(self) -> Array:
        """Log risk ``(P,)``, higher is sooner; each model has its own zero."""
        return self._number(_LOG_RISK)

    @property
    def median_days(self) -> Array:
        """Day ``(P,)`` by which half of such patients have the event; NaN where that lies beyond the curve."""
        return self._number(_MEDIAN)

    @cached_property
    def horizons(self) -> tuple[float, ...]:
        """Days ``(T,)`` by which the probability of the event is predicted; none before curves are fitted."""
        if not self.is_time_to_event:
            return ()
        return tuple(float(match[1]) for name in self._names if (match := _RISK.fullmatch(name)))

    @property
    def risks(self) -> Array:
        """Probability ``(P, T)`` of the event by each of the :attr:`horizons`."""
        return np.stack([self._number(f"risk_{day:g}") for day in self.horizons], axis=1)

    @property
    def log_hazard(self) -> Array:
        """Log cumulative hazard ``(P,)`` at the last horizon: a risk that compares between the models of folds.

        It still orders patients whose probability of the event rounds to 1.
        """
        return self._number(_LOG_HAZARD)

    def select(self, rows: npt.NDArray[np.bool_]) -> PredictionsTable:
        """Give the patients of some rows, ``(P,)`` true where a row is kept."""
        return PredictionsTable(self.frame[rows].reset_index(drop=True))

    def known(self, name: str) -> PredictionsTable:
        """Give the patients with a measured value of a target, or with a known time."""
        return self.select(~np.isnan(self.measured(name)))

    def with_interval(self, target: str, low: Array, high: Array) -> PredictionsTable:
        """Give a copy with other ends ``(P,)`` of the prediction intervals of a target, in its unit."""
        before = f"{target}{_SPREAD if f'{target}{_SPREAD}' in self.frame else _PREDICTED}"
        return self._inserted(before, {f"{target}{_LOW}": low, f"{target}{_HIGH}": high})

    def with_curves(self, median: Array, risks: Mapping[float, Array], *, log_hazard: Array) -> PredictionsTable:
        """Give a copy with what curves make of the log risk.

        Args:
            median: day ``(P,)`` by which half of such patients have the event; infinite or NaN beyond the curve.
            risks: day -> probability ``(P,)`` of the event by then, days increasing.
            log_hazard: log cumulative hazard ``(P,)`` at the last of them.

        Returns:
            The copy.
        """
        columns = {_MEDIAN: np.where(np.isfinite(median), median, np.nan)}
        columns |= {f"risk_{day:g}": risk for day, risk in risks.items()} | {_LOG_HAZARD: log_hazard}
        return self._inserted(_LOG_RISK, columns)

    @cached_property
    def _names(self) -> list[str]:
        return [str(name) for name in self.frame.columns]

    @cached_property
    def _number_columns(self) -> frozenset[str]:
        """Columns that hold numbers, by the header alone."""
        if self.is_time_to_event:
            risks = [f"risk_{day:g}" for day in self.horizons]
            return frozenset(["scans", *self.outcome, _LOG_RISK, _MEDIAN, _LOG_HAZARD, *risks])
        ends = ("", _PREDICTED, _SPREAD, _LOW, _HIGH)
        return frozenset(["scans", *(f"{target}{end}" for target in self.targets for end in ends)])

    def _check_rows(self) -> None:
        # Lists are parsed here, so that a wrong one is found when the table is made.
        _ = self.days, self.weights
        patients, units, scans = self.patient, self._text("unit"), self._number("scans")
        if len(twice := np.flatnonzero(pd.Series(patients).duplicated())):
            first = int(np.flatnonzero(patients == patients[twice[0]])[0])
            raise ValueError(
                f"predictions row {twice[0] + 1}: expected one row per patient, got the patient of row {first + 1}"
            )
        if len(other := np.flatnonzero(units != self.unit)):
            raise ValueError(
                f"predictions row {other[0] + 1}: expected the unit {self.unit} of row 1, got {units[other[0]]!r}"
            )
        if len(self) and not self.unit:
            raise ValueError("predictions row 1: expected a unit, got none")
        if len(wrong := np.flatnonzero(~((scans >= 1) & (scans % 1 == 0)))):
            raise ValueError(
                f"predictions row {wrong[0] + 1}, column scans: expected a whole number from 1, got {scans[wrong[0]]:g}"
            )

    def _text(self, name: str) -> Texts:
        texts: Texts = self._column(name).to_numpy(dtype=object)
        return texts

    def _number(self, name: str) -> Array:
        return np.asarray(self._column(name).to_numpy(dtype=np.float64))

    def _column(self, name: str) -> Any:
        if name not in self.frame:
            raise ValueError(f"predictions: expected a column {name}, got {', '.join(self._names)}")
        return self.frame[name]

    def _inserted(self, before: str, columns: Mapping[str, Array]) -> PredictionsTable:
        frame = self.frame.drop(columns=list(columns), errors="ignore")
        for place, (name, numbers) in enumerate(columns.items(), start=list(frame).index(before) + 1):
            frame.insert(place, name, numbers)
        return PredictionsTable(frame)


def check_target_names(names: Sequence[str]) -> None:
    """Check that targets do not take the names of other columns.

    Args:
        names: of the targets, or of the time and the event.

    Raises:
        ValueError: if one does.

    Example:
        >>> check_target_names(["fev1_predicted"])
        >>> check_target_names(["fev1", "fev1_predicted"])
        Traceback (most recent call last):
        ValueError: expected targets of other names than the columns of predictions.csv, got ['fev1_predicted']
    """
    own = {*_ALWAYS, _LOG_RISK, _MEDIAN, _LOG_HAZARD}
    own |= {f"{name}{end}" for name in names for end in (_PREDICTED, _SPREAD, _LOW, _HIGH)}
    taken = sorted(name for name in names if name in own or name.startswith(_GROUP) or names.count(name) > 1)
    if taken:
        raise ValueError(f"expected targets of other names than the columns of predictions.csv, got {taken}")


def average(tables: Sequence[PredictionsTable]) -> PredictionsTable:
    """Average the predictions of several models for the same patients.

    Args:
        tables: of each model; what is not predicted is taken from the first.

    Returns:
        The means, in the order of the first table, without intervals and medians: those belong to one model. The log
        hazard is that of the mean probability.

    Raises:
        ValueError: if they are of different patients or different columns.
    """
    first = tables[0]
    ends = [f"{target}{end}" for target in first.targets for end in (_LOW, _HIGH)]
    frame = first.frame.drop(columns=[_MEDIAN, *ends], errors="ignore")
    rows = [pd.Index(table.patient).get_indexer(pd.Index(first.patient)) for table in tables]
    for table, order in zip(tables, rows, strict=True):
        if len(table) != len(first) or (order < 0).any():
            raise ValueError("expected predictions of several models for the same patients, got different ones")
    measured = {"scans", *(first.outcome if first.is_time_to_event else first.targets)}
    for name in [name for name in frame if name in first._number_columns - measured]:
        numbers = np.stack([table._number(name)[order] for table, order in zip(tables, rows, strict=True)])
        frame[name] = mean_log_hazard(numbers) if name == _LOG_HAZARD else numbers.mean(axis=0)
    return PredictionsTable(frame)
