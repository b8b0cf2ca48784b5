"""The page: one closed HTML file of text, tables and figures, with numbers a person can read."""

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from monai_mvreg.report import page
from monai_mvreg.results.predictions_table import PredictionsTable
from tests.results.tables import whole


def test_a_figure_without_a_caption_is_refused(tmp_path: Path) -> None:
    section = page.Section("Scans", "", Figure())
    with pytest.raises(ValueError, match="section Scans: expected a caption"):
        page.write_report(tmp_path / "report.html", title="", sections=[section])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.345, "12.3"),
        (-0.12345, "\N{MINUS SIGN}0.123"),
        (0.5, "0.500"),
        (9.999, "10.0"),
        (12345.0, "12\N{NARROW NO-BREAK SPACE}300"),
        (1234567.8, "1\N{NARROW NO-BREAK SPACE}230\N{NARROW NO-BREAK SPACE}000"),
        (0.0, "0"),
        (1.5e-7, "1.50 \N{MULTIPLICATION SIGN} 10⁻⁷"),
        (-2.5e12, "\N{MINUS SIGN}2.50 \N{MULTIPLICATION SIGN} 10¹²"),
        (float("nan"), "not defined"),
    ],
)
def test_numbers_are_rounded_to_three_digits(value: float, text: str, tmp_path: Path) -> None:
    section = page.Section("Numbers", "", table=pd.DataFrame({"name": ["a"], "value": [value]}))
    html = page.write_report(tmp_path / "report.html", title="", sections=[section]).read_text("utf-8")
    assert f"<td>{text}</td>" in html


def test_lines_that_begin_with_a_dash_are_a_list(tmp_path: Path) -> None:
    section = page.Section("Uses", "Before.\n\n- one\n- two <b>\n\nAfter - not a list.")
    html = page.write_report(tmp_path / "report.html", title="", sections=[section]).read_text("utf-8")
    assert "<p>Before.</p>" in html and "<p>After - not a list.</p>" in html
    assert html.count("<li>") == 2 and "<li>two &lt;b&gt;</li>" in html


def test_a_table_of_sentences_may_wrap_and_one_of_numbers_does_not(tmp_path: Path) -> None:
    words = pd.DataFrame({"name": ["a"], "words": ["a sentence that is longer than any number is"], "value": [1.0]})
    for table, kind in ((words, '<table class="words">'), (words.drop(columns="words"), "<table>")):
        sections = [page.Section("T", "", table=table)]
        html = page.write_report(tmp_path / "r.html", title="", sections=sections).read_text("utf-8")
        assert kind in html and "<td>1.00</td>" in html


def test_markdown_holds_the_same_text_and_tables_and_names_the_pictures() -> None:
    table = pd.DataFrame({"name": ["a|b"], "value": [1.23456]})
    section = page.Section("Numbers", "One.\n\n- two\n- three", Figure(), "A curve.", table)
    assert page.as_markdown([section], title="Card", pictures="card.html") == (
        "# Card\n\n## Numbers\n\nOne.\n\n- two\n- three\n\n| name | value |\n| --- | --- |\n| a\\|b | 1.23 |\n\n"
        "*Picture in card.html: A curve.*\n"
    )


def test_few_patients_are_a_warning_and_many_none() -> None:
    assert "These are 7 patients only" in page.caution(7) and page.caution(20) == ""


# ---- What the model must not be used for -----------------------------------------------------------------------------


PATIENTS = whole(
    pd.DataFrame({"volume": [48.06, 180.0], "volume_predicted": 100.0, "scans": [1, 4], "days": ["0", "0;30;400"]})
)


def test_the_range_of_the_patients_seen_is_named() -> None:
    text = page.must_not(PredictionsTable(PATIENTS), "volume", unit="mL", time=False).text.replace(
        "\N{NO-BREAK SPACE}", " "
    )
    assert "unlike the 2 seen here (with values from 48.1 mL to 180 mL, 1 to 4 scans each, 400 days at most" in text
    assert "research use only" in text and "not a medical device" in text


def test_scans_of_one_day_and_one_number_are_said_so() -> None:
    same = PredictionsTable(PATIENTS.assign(scans=2, days="0;0"))
    assert "2 scans each, all of one day" in page.must_not(same, "volume", unit="1", time=False).text


def test_a_time_to_event_is_not_used_beyond_its_horizons() -> None:
    text = page.must_not(PredictionsTable(PATIENTS), "volume", unit="d", time=True).text
    assert "beyond the last horizon" in text and "followed for" in text


def test_numbers_of_other_texts_have_a_true_minus_sign_and_dates_and_ranges_keep_theirs(tmp_path: Path) -> None:
    section = page.Section("s", "growth -6.016, training had -5.9 to 5.8 (-1), 2026-11-28, 2-5 scans, p-5, 1.5-2")
    file = page.write_report(tmp_path / "p.html", title="t", sections=[section])
    minus = "\N{MINUS SIGN}"
    shown = f"growth {minus}6.016, training had {minus}5.9 to 5.8 ({minus}1), 2026-11-28, 2-5 scans, p-5, 1.5-2"
    assert shown in file.read_text(encoding="utf-8")
