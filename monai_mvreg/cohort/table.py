"""Scans -> cohort: a CSV table with one row per scan becomes patients with dated scans and targets."""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from monai_mvreg.cache.atomic import atomic_write
from monai_mvreg.scans.addresses import ScanAddress, exists


@dataclass(frozen=True)
class Columns:
    """The column of the table for each piece of information; the only place where column names are spelled.

    Args:
        patient: key of the patient.
        path: the scan, below the folder of images: a file, a DICOM series' folder, or ``folder#SeriesInstanceUID``.
        day: day of the scan as a number; only differences within a patient count.
        date: date of the scan (ISO 8601, without time of day) instead of ``day``. With neither, all are one visit.
        view: kind of the scan (modality, view, side).
        views: all kinds, in the order of the network's view embedding.
        target: one or more numbers to predict.
        unit: unit of the target, the same in every row; without one the unit is "1", as in UCUM.
        event: 1 if the event was seen at the time given as target, 0 if censored.
        covariates: column -> ``"number"``, or the list of its levels.
        fold: fold of the patient.
        subgroups: columns of either table that reports group errors by (sex, site); the network never sees them.

    Example:
        >>> Columns(day="day", covariates={"age": "number", "sex": ["F", "M"]}).covariate_names
        ('age', 'sex=M')
    """

    patient: str = "patient"
    path: str = "path"
    day: str | None = None
    date: str | None = None
    view: str | None = None
    views: Sequence[str] = ()
    target: Sequence[str] = ()
    unit: str | None = None
    event: str | None = None
    covariates: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    fold: str | None = None
    subgroups: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Take a single text for a list of one: it would be read letter by letter."""
        for name in ("views", "target", "subgroups"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))

    @property
    def covariate_names(self) -> tuple[str, ...]:
        """The numbers that covariates become: the column, or ``column=level`` for every level but the first."""
        names: list[str] = []
        for column, kind in self.covariates.items():
            if isinstance(kind, str) and kind != "number":
                raise ValueError(f"covariate {column!r}: expected 'number' or a list of levels, got {kind!r}")
            names += [column] if isinstance(kind, str) else [f"{column}={level}" for level in list(kind)[1:]]
        return tuple(names)

    def without_outcome(self) -> "Columns":
        """The same columns for new patients, whose target is not known."""
        return replace(self, target=(), unit=None, event=None, fold=None, subgroups=())


@dataclass(frozen=True)
class Patient:
    """One patient: ``scans`` (addresses) in order of time, with their ``days`` from the first and indices ``views``.

    ``target`` ends with the event indicator if there is one; missing ``covariates`` are NaN; ``groups`` are the texts
    of covariates, view and subgroups by column. ``repr`` hides ``key``, ``scans`` and ``groups``, but not ``fold``.

    Example:
        >>> Patient("Smith", ("smith.nii",), days=(0.0,), views=(0,), target=(12.5,), covariates=())
        Patient(days=(0.0,), views=(0,), target=(12.5,), covariates=(), fold=None)
    """

    key: str = field(repr=False)
    scans: tuple[str, ...] = field(repr=False)
    days: tuple[float, ...]
    views: tuple[int, ...]
    target: tuple[float, ...]
    covariates: tuple[float, ...]
    fold: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)


@dataclass(frozen=True)
class Cohort:
    """The ``patients`` of a table; ``target`` (in ``unit``), ``covariates`` and ``views`` name what they hold in order.

    Example:
        >>> read_cohort("cohort.csv", Columns(target=("growth",), unit="unit"), images=".").unit
        'mm/a'
    """

    patients: tuple[Patient, ...]
    target: tuple[str, ...]
    unit: str
    views: tuple[str, ...]
    covariates: tuple[str, ...]


class TableRows:
    """Cells of one table as text, with errors that name file, row and column (the header is row 1).

    Args:
        file: CSV, or TSV by its suffix.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no table in UTF-8 with a header and at least one row.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise FileNotFoundError(f"expected a table, found no file {file}")
        self.separator = "\t" if file.suffix == ".tsv" else ","
        self.file = file
        try:
            # Blank lines count, so that rows are found by their number; a missing cell at the end is an empty one.
            frame = pd.read_csv(
                file, sep=self.separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False
            ).fillna("")
        except ValueError as error:
            raise ValueError(f"{file.name}: expected a table in UTF-8 with a header, {error}") from None
        if not isinstance(frame.index, pd.RangeIndex):
            raise ValueError(f"{file.name}: expected {len(frame.columns)} cells per row as in the header, got more")
        while len(frame) and not "".join(frame.iloc[-1]):
            frame = frame[:-1]
        self.frame = frame
        self._cells: dict[str, list[str]] = {}
        if frame.empty:
            raise ValueError(f"{file.name}: expected at least one row below the header, got none")

    def need(self, *columns: str | None) -> None:
        """Check that the table has these columns."""
        for column in columns:
            if column is not None and column not in self.frame.columns:
                raise ValueError(
                    f"{self.file.name}: expected a column {column!r}, the table has {list(self.frame.columns)}"
                )

    def error(self, row: int, column: str, sentence: str) -> ValueError:
        """Make an error that names the cell."""
        return ValueError(f"{self.file.name} row {row + 2}, column {column!r}: {sentence}")

    def cell(self, row: int, column: str) -> str:
        """Read a cell, empty or not."""
        if column not in self._cells:  # a list is a hundred times as fast as a frame
            self._cells[column] = [str(value).strip() for value in self.frame[column]]
        return self._cells[column][row]

    def text(self, row: int, column: str) -> str:
        """Read a cell that must not be empty."""
        value = self.cell(row, column)
        if not value:
            raise self.error(row, column, "expected a value, the cell is empty")
        return value

    def number(self, row: int, column: str, *, missing: float | None = None) -> float:
        """Read a finite number; an empty cell gives ``missing``, and is refused if that is None."""
        cell = self.cell(row, column)
        if missing is not None and cell.lower() in {"", "na", "n/a", "nan"}:
            return missing
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(row, column, f"expected a number, {f'got {cell!r}' if cell else 'the cell is empty'}")
        return value

    def same(self, rows: Sequence[int], column: str, what: str) -> None:
        """Check that a cell agrees in all these rows."""
        first = self.cell(rows[0], column)
        for row in rows:
            other = self.cell(row, column)
            if other != first:
                raise self.error(row, column, f"expected {what} {first!r} as in row {rows[0] + 2}, got {other!r}")

    def once(self, rows: Sequence[int], column: str) -> None:
        """Check that a patient's rows differ in this cell; one scan under two patients is left to the audit."""
        found: dict[str, int] = {}
        for row in rows:
            earlier = found.setdefault(Path(self.text(row, column)).as_posix(), row)
            if earlier != row:
                raise self.error(row, column, f"expected each scan once, row {earlier + 2} names the same")


def read_cohort(
    scans_file: str | Path, columns: Columns, *, images: str | Path, outcomes_file: str | Path | None = None
) -> Cohort:
    """Read and check a table of scans.

    Args:
        scans_file: CSV or TSV with one row per scan.
        columns: the names of the columns.
        images: folder that the paths in the table are relative to.
        outcomes_file: a second table with one row per patient that holds targets, unit, event, covariates and fold;
            ``None`` if they are in the table of scans.

    Raises:
        FileNotFoundError: if a table or a scan does not exist; a scan is named by its row.
        ValueError: for any cell that cannot be used, with file, row and column.

    Example:
        >>> read_cohort("cohort.csv", Columns(day="day"), images=".").patients[0].days
        (0.0, 204.0, 386.0, 524.0, 669.0)
    """
    scans = TableRows(Path(scans_file))
    scans.need(columns.patient, columns.path, columns.day, columns.date, columns.view)
    if columns.day is not None and columns.date is not None:
        raise ValueError(f"expected a column for day or for date, got both {columns.day!r} and {columns.date!r}")
    if bool(columns.view) != bool(columns.views):
        raise ValueError(f"expected view and views together, got view {columns.view!r} and views {list(columns.views)}")
    facts = scans if outcomes_file is None else TableRows(Path(outcomes_file))
    facts.need(columns.patient, *columns.target, columns.unit, columns.event, *columns.covariates, columns.fold)
    grouped = dict.fromkeys([*columns.covariates, *([columns.view] if columns.view else []), *columns.subgroups])
    scans.need(*(name for name in grouped if name not in facts.frame))
    if columns.unit is not None:
        facts.same(range(len(facts.frame)), columns.unit, "one unit")
    rows_of = _rows_by_patient(scans, columns.patient)
    facts_of = rows_of if facts is scans else _rows_by_patient(facts, columns.patient)
    patients = []
    for key, rows in rows_of.items():
        if key not in facts_of:
            raise scans.error(rows[0], columns.patient, f"expected this patient in {facts.file.name}, found no row")
        patient = _facts_of_patient(key, facts, facts_of[key], columns)
        groups = {
            name: _group(*((facts, facts_of[key]) if name in facts.frame else (scans, rows)), name) for name in grouped
        }
        patients.append(_add_scans(replace(patient, groups=groups), scans, rows, columns, Path(images)))
    return Cohort(
        tuple(patients),
        target=(*columns.target, *([columns.event] if columns.event else [])),
        unit=facts.text(0, columns.unit) if columns.unit else "1",
        views=tuple(columns.views),
        covariates=columns.covariate_names,
    )


def _rows_by_patient(rows: TableRows, column: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row in range(len(rows.frame)):
        found.setdefault(rows.text(row, column), []).append(row)
    return found


def _facts_of_patient(key: str, facts: TableRows, rows: Sequence[int], columns: Columns) -> Patient:
    row = rows[0]
    for column in (*columns.target, columns.event, *columns.covariates):
        if column is not None:
            facts.same(rows, column, "the patient's value")
    if columns.fold is not None:
        folds = {facts.text(r, columns.fold): r + 2 for r in reversed(rows)}
        if len(folds) > 1:
            where = " and ".join(f"{fold!r} (row {r})" for fold, r in sorted(folds.items()))
            raise ValueError(f"{facts.file.name}, column {columns.fold!r}: one patient is in two folds, {where}")
    target = [facts.number(row, column) for column in columns.target]
    if columns.event is not None:
        if target and target[0] < 0:
            raise facts.error(row, columns.target[0], f"expected a time of 0 days or more, got {target[0]:g}")
        event = facts.number(row, columns.event)
        if event not in (0.0, 1.0):
            raise facts.error(row, columns.event, f"expected 1 (event seen) or 0 (censored), got {event:g}")
        target.append(event)
    covariates: list[float] = []
    for column, kind in columns.covariates.items():
        if isinstance(kind, str):
            covariates.append(facts.number(row, column, missing=math.nan))
            continue
        levels = [str(level) for level in kind]
        value = facts.cell(row, column)
        if value and value not in levels:
            raise facts.error(row, column, f"expected one of {levels} or nothing, got {value!r}")
        covariates.extend(float(value == level) if value else math.nan for level in levels[1:])
    fold = facts.text(row, columns.fold) if columns.fold is not None else None
    return Patient(key, (), (), (), tuple(target), tuple(covariates), fold)


def _group(table: TableRows, rows: Sequence[int], column: str) -> str:
    """The cell of a patient's rows, or all that differ: a patient may have scans of several views and scanners."""
    return " + ".join(sorted({cell for row in rows if (cell := table.cell(row, column))}))


def _add_scans(patient: Patient, scans: TableRows, rows: Sequence[int], columns: Columns, images: Path) -> Patient:
    scans.once(rows, columns.path)
    found = []
    for row in rows:
        address = images / scans.text(row, columns.path)
        if not exists(ScanAddress.parse(address).place):
            raise FileNotFoundError(
                f"{scans.file.name} row {row + 2}, column {columns.path!r}: no such scan below {images}"
            )
        view = 0
        if columns.view is not None and columns.views:
            name = scans.text(row, columns.view)
            if name not in columns.views:
                raise scans.error(row, columns.view, f"expected one of {list(columns.views)}, got {name!r}")
            view = list(columns.views).index(name)
        found.append((_day(scans, row, columns), str(address), view))
    found.sort()
    days, scans_in_order, views = zip(*found, strict=True)
    return replace(patient, scans=scans_in_order, days=tuple(day - days[0] for day in days), views=views)


def _day(scans: TableRows, row: int, columns: Columns) -> float:
    if columns.day is not None:
        return scans.number(row, columns.day)
    if columns.date is None:
        return 0.0
    cell = scans.text(row, columns.date)
    try:
        # Strict: pandas would take "5" for a day of this month, and 03/04/2026 for the fourth of March.
        return float(datetime.datetime.fromisoformat(cell).toordinal())
    except ValueError:
        raise scans.error(row, columns.date, f"expected a date such as 2026-03-31, got {cell!r}") from None


def datalist(patients: Sequence[Patient]) -> list[dict[str, Any]]:
    """Turn patients into the items of a MONAI dataset.

    Args:
        patients: of a cohort, or of one of its folds.

    Returns:
        One dictionary per patient: ``patient``, ``image`` (addresses of the scans), ``time`` (days), ``view``, ``fold``
        and, if there are any, ``label``, ``covariates`` and ``groups`` (texts by column).

    Raises:
        ValueError: if there are no patients.

    Example:
        >>> datalist(read_cohort("cohort.csv", Columns(day="day"), images=".").patients)[0]["time"]
        [0.0, 204.0, 386.0, 524.0, 669.0]
    """
    if not patients:
        raise ValueError("expected at least one patient, got none: is the fold spelled as in the table?")
    items: list[dict[str, Any]] = []
    for patient in patients:
        item = {"patient": patient.key, "image": list(patient.scans), "time": list(patient.days)}
        item |= {"view": list(patient.views), "fold": patient.fold or ""}
        optional = {"label": list(patient.target), "covariates": list(patient.covariates), "groups": {**patient.groups}}
        items.append(item | {name: values for name, values in optional.items() if values})
    return items


def write_cohort(cohort: Cohort, path: str | Path) -> None:
    """Write a cohort as a CSV with one row per scan; :func:`read_cohort` reads it with ``columns_of(cohort)``.

    Args:
        cohort: the patients.
        path: the CSV file; paths of scans in its folder are written relative to it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_cohort(read_cohort("cohort.csv", Columns(day="day"), images="."), f"{folder}/copy.csv")
        ...     Path(folder, "copy.csv").read_text().split()[0]
        'patient,path,day'
    """
    folder = Path(path).resolve().parent
    rows = []
    for patient in cohort.patients:
        for scan, day, view in zip(patient.scans, patient.days, patient.views, strict=True):
            address = ScanAddress.parse(scan)
            path_in_table = str(replace(address, place=address.place.resolve()).relative_to(folder))
            row: dict[str, Any] = {"patient": patient.key, "path": path_in_table, "day": f"{day:.10g}"}
            if cohort.views:
                row["view"] = cohort.views[view]
            row.update(zip(cohort.target, patient.target, strict=True))
            if cohort.target:
                row["unit"] = cohort.unit
            row.update(zip(cohort.covariates, patient.covariates, strict=True))
            if patient.fold is not None:
                row["fold"] = patient.fold
            rows.append(row)
    with atomic_write(Path(path)) as unfinished:
        pd.DataFrame(rows).to_csv(unfinished, index=False)


def columns_of(cohort: Cohort) -> Columns:
    """Name the columns of a table that :func:`write_cohort` wrote (an event column becomes the last target)."""
    return Columns(
        day="day",
        view="view" if cohort.views else None,
        views=cohort.views,
        target=cohort.target,
        unit="unit" if cohort.target else None,
        covariates={name: "number" for name in cohort.covariates},
        fold="fold" if any(patient.fold is not None for patient in cohort.patients) else None,
    )
