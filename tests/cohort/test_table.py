"""Rows to patients: what a cohort table may hold, and what is refused with row and column."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monai_mvreg.cohort.table import Cohort, Columns, Patient, columns_of, datalist, read_cohort, write_cohort

KEY = "Erika Mustermann 1964"
ROWS = [
    {"patient": KEY, "path": "a.nii", "day": "30", "target": "50", "unit": "mL", "fold": "0"},
    {"patient": KEY, "path": "b.nii", "day": "10", "target": "50", "unit": "mL", "fold": "0"},
    {"patient": "other", "path": "c.nii", "day": "5", "target": "60", "unit": "mL", "fold": "1"},
]
COLUMNS = Columns(day="day", target=("target",), unit="unit", fold="fold")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcde":
        (tmp_path / f"{name}.nii").touch()
    return tmp_path


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def with_cells(row: int, **cells: str) -> list[dict[str, str]]:
    """The table with other cells in one row, counted as in messages: the header is row 1."""
    return [{**entry, **cells} if index + 2 == row else dict(entry) for index, entry in enumerate(ROWS)]


def with_column(column: str, *cells: str) -> list[dict[str, str]]:
    return [{**row, column: cell} for row, cell in zip(ROWS, cells, strict=True)]


def read(folder: Path, rows: Sequence[Mapping[str, Any]] = ROWS, columns: Columns = COLUMNS) -> Cohort:
    return read_cohort(write(folder / "cohort.csv", rows), columns, images=str(folder))


def refusal(folder: Path, rows: Sequence[Mapping[str, Any]], columns: Columns = COLUMNS) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read(folder, rows, columns)
    message = str(caught.value)
    assert KEY not in message and "\n" not in message
    return message


def test_scans_of_a_patient_are_in_order_of_time_and_days_count_from_the_first(folder: Path) -> None:
    first, second = read(folder).patients
    assert [Path(scan).name for scan in first.scans] == ["b.nii", "a.nii"]
    assert first.days == (0.0, 20.0) and second.days == (0.0,)
    assert first.target == (50.0,) and first.fold == "0"


def test_the_order_of_rows_changes_no_patient(folder: Path) -> None:
    shuffled = list(ROWS)
    expected = set(read(folder).patients)
    for seed in range(5):
        random.Random(seed).shuffle(shuffled)
        assert set(read(folder, shuffled).patients) == expected


def test_the_order_of_scans_of_one_day_does_not_depend_on_the_order_of_rows(folder: Path) -> None:
    same_day = with_cells(2, day="10")
    assert set(read(folder, same_day).patients) == set(read(folder, same_day[::-1]).patients)


def test_dates_give_the_same_days_as_numbers(folder: Path) -> None:
    rows = with_column("date", "2026-03-31", "2026-03-11", "2020-02-29")
    dated = read(folder, rows, Columns(date="date", target=("target",), unit="unit", fold="fold"))
    assert [p.days for p in dated.patients] == [p.days for p in read(folder).patients]


def test_the_time_of_day_is_not_read(folder: Path) -> None:
    rows = with_column("date", "2026-03-31T23:59", "2026-03-11 00:01:30", "2020-02-29")
    assert read(folder, rows, Columns(date="date")).patients[0].days == (0.0, 20.0)


def test_without_day_and_date_all_scans_are_one_visit(folder: Path) -> None:
    assert read(folder, columns=Columns(target=("target",))).patients[0].days == (0.0, 0.0)


def test_a_byte_order_mark_and_tabs_are_read(folder: Path) -> None:
    marked = folder / "marked.csv"
    marked.write_bytes(b"\xef\xbb\xbf" + Path(write(folder / "cohort.csv", ROWS)).read_bytes())
    tabs = write(folder / "cohort.tsv", ROWS)
    assert read_cohort(str(marked), COLUMNS, images=str(folder)) == read(folder)
    assert read_cohort(tabs, COLUMNS, images=str(folder)) == read(folder)


def test_keys_that_look_like_numbers_or_missing_values_stay_text(folder: Path) -> None:
    rows = [{**row, "patient": key} for row, key in zip(ROWS, ("007", "NA", "7"), strict=True)]
    assert [patient.key for patient in read(folder, rows).patients] == ["007", "NA", "7"]


def test_targets_may_stand_in_a_table_of_their_own(folder: Path) -> None:
    scans = write(folder / "scans.csv", [{k: row[k] for k in ("patient", "path", "day")} for row in ROWS])
    facts = [{k: row[k] for k in ("patient", "target", "unit", "fold")} for row in ROWS[1:]]
    outcomes = write(folder / "outcomes.csv", [*facts, {**facts[0], "patient": "without scans"}])
    assert read_cohort(scans, COLUMNS, images=str(folder), outcomes_file=outcomes) == read(folder)
    outcomes = write(folder / "outcomes.csv", facts[1:])
    with pytest.raises(
        ValueError, match=r"scans.csv row 2, column 'patient': expected this patient in outcomes.csv"
    ) as caught:
        read_cohort(scans, COLUMNS, images=str(folder), outcomes_file=outcomes)
    assert KEY not in str(caught.value)


def test_covariates_are_numbers_and_levels_and_a_missing_one_is_nan(folder: Path) -> None:
    rows = [
        {**row, "age": age, "sex": sex}
        for row, age, sex in zip(ROWS, ("61.5", "61.5", "n/a"), ("M", "M", ""), strict=True)
    ]
    columns = Columns(target=("target",), covariates={"age": "number", "sex": ["F", "M", "X"]})
    cohort = read(folder, rows, columns)
    assert cohort.covariates == ("age", "sex=M", "sex=X")
    assert cohort.patients[0].covariates == (61.5, 1.0, 0.0)
    assert all(math.isnan(number) for number in cohort.patients[1].covariates)
    rows[2]["sex"] = "W"
    assert refusal(folder, rows, columns) == (
        "cohort.csv row 4, column 'sex': expected one of ['F', 'M', 'X'] or nothing, got 'W'"
    )


def test_a_covariate_of_unknown_kind_is_refused(folder: Path) -> None:
    columns = Columns(covariates={"target": "integer"})
    assert refusal(folder, ROWS, columns) == "covariate 'target': expected 'number' or a list of levels, got 'integer'"


def test_views_are_indices_into_the_list_of_views(folder: Path) -> None:
    rows = with_column("side", "LAT", "AP", "AP")
    columns = Columns(day="day", view="side", views=("AP", "LAT"))
    assert [p.views for p in read(folder, rows, columns).patients] == [(0, 1), (0,)]
    assert refusal(folder, with_column("side", "LAT", "AP", "PA"), columns) == (
        "cohort.csv row 4, column 'side': expected one of ['AP', 'LAT'], got 'PA'"
    )


def test_the_event_is_the_last_target(folder: Path) -> None:
    columns = Columns(target=("target",), event="seen")
    cohort = read(folder, with_column("seen", "1", "1", "0"), columns)
    assert cohort.target == ("target", "seen")
    assert [p.target for p in cohort.patients] == [(50.0, 1.0), (60.0, 0.0)]
    assert refusal(folder, with_column("seen", "1", "1", "2"), columns) == (
        "cohort.csv row 4, column 'seen': expected 1 (event seen) or 0 (censored), got 2"
    )


def test_several_targets_keep_their_order(folder: Path) -> None:
    cohort = read(folder, with_column("second", "7", "7", "8"), Columns(target=("second", "target")))
    assert [p.target for p in cohort.patients] == [(7.0, 50.0), (8.0, 60.0)]


def test_without_a_unit_the_unit_is_one(folder: Path) -> None:
    assert read(folder).unit == "mL"
    assert read(folder, columns=Columns(target=("target",))).unit == "1"


REFUSED = {
    "empty target": (
        with_cells(4, target=""),
        "cohort.csv row 4, column 'target': expected a number, the cell is empty",
    ),
    "text as target": (
        with_cells(4, target="high"),
        "cohort.csv row 4, column 'target': expected a number, got 'high'",
    ),
    "infinite target": (
        with_cells(4, target="inf"),
        "cohort.csv row 4, column 'target': expected a number, got 'inf'",
    ),
    "decimal comma": (with_cells(4, target="1,5"), "cohort.csv row 4, column 'target': expected a number, got '1,5'"),
    "target missing in one row of a patient": (
        with_cells(3, target=""),
        "cohort.csv row 3, column 'target': expected the patient's value '50' as in row 2, got ''",
    ),
    "two targets of a patient": (
        with_cells(3, target="51"),
        "cohort.csv row 3, column 'target': expected the patient's value '50' as in row 2, got '51'",
    ),
    "two folds of a patient": (
        with_cells(3, fold="1"),
        "cohort.csv, column 'fold': one patient is in two folds, '0' (row 2) and '1' (row 3)",
    ),
    "no fold": (with_cells(4, fold=""), "cohort.csv row 4, column 'fold': expected a value, the cell is empty"),
    "no patient": (
        with_cells(4, patient=" "),
        "cohort.csv row 4, column 'patient': expected a value, the cell is empty",
    ),
    "no path": (with_cells(4, path=""), "cohort.csv row 4, column 'path': expected a value, the cell is empty"),
    "no day": (with_cells(4, day=""), "cohort.csv row 4, column 'day': expected a number, the cell is empty"),
    "a scan twice": (
        with_cells(3, path="a.nii", day="30"),
        "cohort.csv row 3, column 'path': expected each scan once, row 2 names the same",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_cell_that_cannot_be_used_is_named_by_row_and_column(folder: Path, case: str) -> None:
    rows, sentence = REFUSED[case]
    assert refusal(folder, rows) == sentence


def test_two_units_are_refused_with_both(folder: Path) -> None:
    message = refusal(folder, with_cells(4, unit="L"))
    assert message == "cohort.csv row 4, column 'unit': expected one unit 'mL' as in row 2, got 'L'"


@pytest.mark.parametrize("days", [("10", "30"), ("30", "10")])
def test_a_scan_listed_twice_is_refused_whatever_the_days(folder: Path, days: tuple[str, str]) -> None:
    rows = [
        {"patient": KEY, "path": "a.nii", "day": days[0], "target": "1", "unit": "mL", "fold": "0"},
        {"patient": KEY, "path": "b.nii", "day": "20", "target": "1", "unit": "mL", "fold": "0"},
        {"patient": KEY, "path": "a.nii", "day": days[1], "target": "1", "unit": "mL", "fold": "0"},
    ]
    assert refusal(folder, rows) == "cohort.csv row 4, column 'path': expected each scan once, row 2 names the same"


def test_a_scan_may_stand_under_two_patients_as_in_bags_drawn_from_one_pool(folder: Path) -> None:
    assert read(folder, with_cells(4, path="a.nii")).patients[1].scans == (str(folder / "a.nii"),)


def test_a_date_that_is_none_is_refused(folder: Path) -> None:
    for cell in ("spring", "NaT", "2026-02-30", "5", "03/04/2026"):
        rows = with_column("date", "2026-03-31", "2026-03-11", cell)
        assert refusal(folder, rows, Columns(date="date")) == (
            f"cohort.csv row 4, column 'date': expected a date such as 2026-03-31, got {cell!r}"
        )


def test_day_and_date_together_are_refused(folder: Path) -> None:
    assert refusal(folder, with_column("date", "", "", ""), Columns(day="day", date="date")) == (
        "expected a column for day or for date, got both 'day' and 'date'"
    )


def test_a_missing_column_is_refused_with_the_columns_there_are(folder: Path) -> None:
    assert refusal(folder, ROWS, Columns(target=("volume",))) == (
        "cohort.csv: expected a column 'volume', the table has ['patient', 'path', 'day', 'target', 'unit', 'fold']"
    )


def test_a_missing_scan_is_named_by_its_row(folder: Path) -> None:
    message = refusal(folder, with_cells(4, path=f"{KEY}.nii"))
    assert message.startswith("cohort.csv row 4, column 'path': no such scan below ")


def test_a_folder_with_a_series_uid_is_there_if_the_folder_is(folder: Path) -> None:
    (folder / "study").mkdir()
    read(folder, with_cells(4, path="study#1.2.3"))
    assert "row 4" in refusal(folder, with_cells(4, path="nowhere#1.2.3"))


def test_a_missing_or_empty_table_is_refused(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a table, found no file .*absent\.csv"):
        read_cohort(str(folder / "absent.csv"), COLUMNS, images=str(folder))
    (folder / "cohort.csv").write_text("patient,path\n")
    with pytest.raises(ValueError, match=r"cohort.csv: expected at least one row below the header, got none"):
        read_cohort(str(folder / "cohort.csv"), COLUMNS, images=str(folder))


def test_a_file_without_any_text_is_refused(folder: Path) -> None:
    (folder / "cohort.csv").write_text("")
    with pytest.raises(ValueError, match=r"cohort.csv: expected "):
        read_cohort(str(folder / "cohort.csv"), COLUMNS, images=str(folder))


def test_a_table_in_another_encoding_is_refused_by_name(folder: Path) -> None:
    (folder / "cohort.csv").write_bytes("patient,path\nMüller,a.nii\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"cohort.csv: expected .*UTF-8") as caught:
        read_cohort(str(folder / "cohort.csv"), Columns(), images=str(folder))
    assert "ller" not in str(caught.value)


def test_rows_keep_their_number_behind_a_blank_line_and_blank_lines_at_the_end_are_nothing(folder: Path) -> None:
    lines = Path(write(folder / "cohort.csv", ROWS)).read_text().splitlines()
    for end in ("", "\n", "\n\n\n", "\n,,,,,\n,,,,,\n"):
        (folder / "cohort.csv").write_text("\n".join(lines) + end)
        assert len(read_cohort(str(folder / "cohort.csv"), COLUMNS, images=str(folder)).patients) == 2
    (folder / "cohort.csv").write_text("\n".join([*lines[:2], "", *lines[2:]]))
    with pytest.raises(ValueError, match="row 3, column 'patient': expected a value, the cell is empty"):
        read_cohort(str(folder / "cohort.csv"), Columns(), images=str(folder))


def test_rows_with_more_or_fewer_cells_than_the_header_are_refused(folder: Path) -> None:
    (folder / "cohort.csv").write_text("patient,path,fold\np,a.nii\n")
    with pytest.raises(ValueError, match="row 2, column 'fold': expected a value, the cell is empty"):
        read_cohort(str(folder / "cohort.csv"), Columns(fold="fold"), images=str(folder))
    (folder / "cohort.csv").write_text("patient,path\np,a.nii,1\nq,b.nii,2\n")
    with pytest.raises(ValueError, match=r"cohort.csv: expected 2 cells per row as in the header, got more"):
        read_cohort(str(folder / "cohort.csv"), Columns(), images=str(folder))
    (folder / "cohort.csv").write_text("patient,path\np,a.nii\nq,b.nii,2\n")
    with pytest.raises(ValueError, match=r"cohort.csv: expected .* 2 fields in line 3, saw 3"):
        read_cohort(str(folder / "cohort.csv"), Columns(), images=str(folder))


def test_new_patients_need_no_outcome(folder: Path) -> None:
    rows = [{key: row[key] for key in ("patient", "path", "day")} for row in ROWS]
    cohort = read(folder, rows, COLUMNS.without_outcome())
    assert all(p.target == () and p.fold is None for p in cohort.patients)
    assert all("label" not in item for item in datalist(cohort.patients))


def test_a_cohort_written_is_read_back_equal(folder: Path) -> None:
    rows = [
        {**row, "age": age, "side": side, "seen": "1"}
        for row, age, side in zip(ROWS, ("61.5", "61.5", ""), ("LAT", "AP", "AP"), strict=True)
    ]
    columns = Columns(
        day="day",
        view="side",
        views=("AP", "LAT"),
        target=("target",),
        unit="unit",
        event="seen",
        covariates={"age": "number"},
        fold="fold",
    )
    cohort = read(folder, rows, columns)
    file = folder / "written.csv"
    write_cohort(cohort, str(file))
    again = read_cohort(str(file), columns_of(cohort), images=str(folder))
    assert repr(again) == repr(cohort)  # NaN is not equal to itself
    assert [(p.key, p.scans) for p in again.patients] == [(p.key, p.scans) for p in cohort.patients]
    assert str(folder) not in file.read_text()


def test_a_printed_patient_shows_neither_key_nor_files(folder: Path) -> None:
    cohort = read(folder)
    assert KEY not in repr(cohort) and "nii" not in repr(cohort) and "50.0" in repr(cohort)


def test_items_carry_what_the_collate_reads() -> None:
    patient = Patient("p", ("a", "b"), (0.0, 3.0), (0, 1), (5.0,), (1.0,), "2")
    assert datalist([patient]) == [
        {
            "patient": "p",
            "image": ["a", "b"],
            "time": [0.0, 3.0],
            "view": [0, 1],
            "fold": "2",
            "label": [5.0],
            "covariates": [1.0],
        }
    ]
    with pytest.raises(ValueError, match="expected at least one patient, got none"):
        datalist([])


@pytest.mark.parametrize("columns", [Columns(view="target"), Columns(views=("T1",))])
def test_a_view_without_its_list_or_a_list_without_its_view_is_refused(folder: Path, columns: Columns) -> None:
    assert refusal(folder, ROWS, columns).startswith("expected view and views together")


def test_groups_are_the_texts_of_covariates_views_and_named_columns_of_either_table(folder: Path) -> None:
    rows = [
        {**row, "view": view, "sex": sex, "scanner": scanner, "age": age}
        for row, view, sex, scanner, age in zip(
            ROWS, ["ap", "pa", "ap"], ["F", "F", ""], ["B", "A", "A"], ["61.5", "61.5", "70"], strict=True
        )
    ]
    columns = replace(
        COLUMNS, view="view", views=("ap", "pa"), covariates={"age": "number"}, subgroups=("sex", "scanner")
    )
    one, other = read(folder, rows, columns).patients
    assert dict(one.groups) == {"age": "61.5", "view": "ap + pa", "sex": "F", "scanner": "A + B"}
    assert dict(other.groups) == {"age": "70", "view": "ap", "sex": "", "scanner": "A"}
    assert datalist([one])[0]["groups"] == dict(one.groups)
    assert columns.without_outcome().subgroups == () and "A + B" not in repr(one)


def test_a_subgroup_that_is_no_column_is_named(folder: Path) -> None:
    assert "expected a column 'site'" in refusal(folder, ROWS, replace(COLUMNS, subgroups=("site",)))


@pytest.mark.parametrize("name", ["views", "target", "subgroups"])
def test_one_name_is_a_list_of_one(name: str) -> None:
    assert Columns(**{name: "volume"}) == Columns(**{name: ("volume",)})  # type: ignore[arg-type]


def test_a_negative_time_to_an_event_is_refused_by_its_row(folder: Path) -> None:
    rows = [{**row, "target": -5 if row["patient"] == ROWS[0]["patient"] else 7, "seen": 1} for row in ROWS]
    columns = Columns(target=("target",), event="seen")
    told = "cohort.csv row 2, column 'target': expected a time of 0 days or more, got -5"
    assert refusal(folder, rows, columns) == told
    assert read(folder, rows, replace(columns, event=None)).patients[0].target == (-5.0,)  # a change may be negative
