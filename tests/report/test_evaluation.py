import base64
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from monai_mvreg.metrics import regression
from monai_mvreg.report import evaluation, page
from monai_mvreg.results.predictions_table import PredictionsTable

VOID = {"meta", "img", "link", "br", "hr"}


class Page(HTMLParser):
    """Collects tags and pictures, and fails on a tag that is not closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.seen: set[str] = set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def predictions(patients: int = 40) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    measured = 120 + 30 * generator.normal(size=patients)
    return pd.DataFrame(
        {
            "patient": [f"KEY-{i:04d}-Smith" for i in range(patients)],
            "fold": (np.arange(patients) % 5).astype(str),
            "volume": measured,
            "volume_predicted": measured + 12 * generator.normal(size=patients) + 2,
            "unit": "mL",
            "scans": 2,
            "addresses": "SCANKEY-1;SCANKEY-2",
            "days": "0;163",
            "weights": "0.66;0.34",
        }
    )


def written(folder: Path, table: pd.DataFrame) -> Path:
    table.to_csv(folder / "predictions.csv", index=False)
    (folder / "metrics.json").write_text(
        json.dumps(evaluation.summarise(PredictionsTable(table), "volume"), allow_nan=False)
    )
    epochs = np.arange(1, 21)
    mae = np.where(epochs % 2 == 0, 12 + 20 / epochs, np.nan)
    pd.DataFrame({"epoch": epochs, "train_loss": 1 / epochs, "mae": mae}).to_csv(folder / "history.csv", index=False)
    return folder


def sections_of(folder: Path, **options: Any) -> list[page.Section]:
    table = PredictionsTable.read(folder / "predictions.csv")
    return evaluation.evaluation_sections(table, folder, "volume", **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path, predictions())


@pytest.fixture
def html(folder: Path) -> str:
    mean = np.full(40, predictions()["volume"].mean())
    sections = sections_of(folder, baselines={"training mean": mean})
    return page.write_report(folder / "report.html", title="Volume <&> more", sections=sections).read_text("utf-8")


def test_the_summary_holds_the_metrics_of_the_patients_with_a_measured_value():
    table = predictions()
    table.loc[[3, 5], "volume"] = np.nan
    known = table.drop([3, 5])
    expected = regression.cohort_metrics(known["volume_predicted"].to_numpy(), known["volume"].to_numpy())
    found = evaluation.summarise(PredictionsTable(table), "volume")["volume"]
    assert (found["unit"], found["patients"], found["left_out"]) == ("mL", 38, 2)
    assert found["mae"] == {"value": expected["mae"].value, "low": expected["mae"].low, "high": expected["mae"].high}


def test_a_metric_that_does_not_exist_is_null_in_json_and_said_so_in_the_report(tmp_path):
    folder = written(tmp_path, predictions().assign(volume=100.0))
    assert json.loads((folder / "metrics.json").read_text())["volume"]["r2"]["value"] is None
    summary = sections_of(folder)[0]
    assert summary.table["Value"].tolist()[4:] == ["not defined"] * 4
    assert "not shown that the model does better" in summary.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="unit"), "expected a column unit, got patient, fold"),
        (lambda t: t.assign(unit=["mL", "mL", "L"] + ["mL"] * 37), "row 3: expected the unit mL of row 1"),
        (lambda t: t.assign(unit=[None] * 40), "row 1: expected a unit, got none"),
        (lambda t: pd.concat([t, t[:1]]), "row 41: expected one row per patient"),
        (lambda t: t.assign(volume_predicted=[1.0, None] + [1.0] * 38), "row 2: expected a prediction"),
        (lambda t: t[:1], "at least 2 patients"),
        (lambda t: t[:0], "at least 2 patients"),
    ],
)
def test_a_wrong_table_is_refused_with_its_row_and_without_the_patient(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        evaluation.summarise(PredictionsTable(change(predictions())), "volume")
    assert "KEY" not in str(caught.value)


def test_the_report_holds_the_numbers_with_their_unit(html, folder):
    stored = json.loads((folder / "metrics.json").read_text())["volume"]
    text = html.replace("\N{NO-BREAK SPACE}", " ")
    assert f"<td>{stored['mae']['value']:.3g} mL</td>" in text
    assert f"<td>{stored['rmse']['low']:.1f} to {stored['rmse']['high']:.1f} mL</td>" in text
    assert f"<td>{stored['pearson']['value']:.3f}</td>" in text
    assert "In 40 patients" in text
    assert "the model is better than &#34;training mean&#34;" in text
    assert "research use only" in text and "not a medical device" in text


def test_the_report_is_one_closed_html_file_without_scripts_or_addresses(html):
    page = Page(html)
    assert len(page.images) == 4
    assert {"table", "figure", "figcaption"} <= page.seen and "script" not in page.seen
    assert not re.search("http|//|url\\(|@import", re.sub('base64,[^"]*', "", html))
    for image in page.images:
        assert image["alt"] and image["src"].startswith("data:image/svg+xml;base64,")


def test_neither_the_report_nor_its_pictures_show_a_patient_or_a_scan(html):
    pictures = [base64.b64decode(code).decode() for code in re.findall('base64,([^"]*)"', html)]
    assert not any(key in text for text in [html, *pictures] for key in ("KEY-", "Smith", "SCANKEY"))


def test_text_from_outside_is_escaped(html):
    assert "<h1>Volume &lt;&amp;&gt; more</h1>" in html


def test_the_comparison_is_that_of_the_metrics_on_patients_with_a_measured_value(tmp_path):
    table = predictions()
    table.loc[0, "volume"] = np.nan
    mean = np.full(40, 120.0)
    mean[0] = np.nan
    comparison = sections_of(written(tmp_path, table), baselines={"mean": mean})[1]
    known = table[1:]
    expected = regression.difference(known["volume_predicted"].to_numpy(), mean[1:], known["volume"].to_numpy())
    assert comparison.table.iloc[1, 2] == f"\N{MINUS SIGN}{-expected.value:.3g}\N{NO-BREAK SPACE}mL"


@pytest.mark.parametrize("baseline", [np.zeros(39), np.full(40, np.nan)])
def test_a_baseline_without_one_value_per_patient_is_refused_by_name(folder, baseline):
    with pytest.raises(ValueError, match="baseline mean: "):
        sections_of(folder, baselines={"mean": baseline})


def test_metrics_of_other_predictions_are_refused(folder):
    predictions(39).to_csv(folder / "predictions.csv", index=False)
    with pytest.raises(ValueError, match=r"metrics.json: expected the metrics of volume"):
        sections_of(folder)


def test_an_evaluation_without_training_has_no_training_section(folder):
    (folder / "history.csv").unlink()
    titles = [section.title for section in sections_of(folder)]
    assert "Training" not in titles and titles[-1] == "Limits"


def test_training_has_a_panel_for_each_curve_and_skips_epochs_without_validation():
    history = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3.0, 2.0, 1.0], "mae": [np.nan, 5.0, np.nan]})
    loss, mae = evaluation.figure_training(history).axes
    assert loss.lines[0].get_ydata().tolist() == [3, 2, 1] and loss.get_ylabel() == "train loss"
    assert mae.lines[0].get_xdata().tolist() == [2] and mae.get_xlabel() == "epoch"


def test_a_history_without_curves_is_refused():
    with pytest.raises(ValueError, match="expected a column epoch, then curves, got epoch"):
        evaluation.figure_training(pd.DataFrame({"epoch": [1]}))


def test_agreement_shows_every_patient_and_the_line_of_identity():
    measured, predicted = np.tile([1.0, 2.0, 3.0], 7), np.tile([1.5, 2.0, 2.0], 7)
    (axes,) = evaluation.figure_agreement(measured, predicted, unit="mL").axes
    identity, points, smooth = axes.lines
    assert list(identity.get_xdata()) == list(identity.get_ydata())
    assert points.get_xydata().tolist() == np.c_[predicted, measured].tolist()
    assert list(smooth.get_xdata()) == [1.5, 2.0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted [mL]", "measured [mL]")
    assert axes.get_xlim() == axes.get_ylim()


def test_agreement_of_few_patients_has_no_smooth_line():
    (axes,) = evaluation.figure_agreement(np.arange(19.0), np.arange(19.0), unit="mL").axes
    assert len(axes.lines) == 2


def test_residuals_show_bias_and_limits_of_agreement():
    measured, predicted = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 2.0])
    (axes,) = evaluation.figure_residuals(measured, predicted, unit="1").axes
    points, *levels = axes.lines
    assert points.get_ydata().tolist() == [0.5, 0.0, -2.0] and points.get_xdata().tolist() == [1.25, 2.0, 3.0]
    assert [line.get_ydata()[0] for line in levels] == list(regression.limits_of_agreement(predicted, measured))
    assert axes.get_ylabel() == "predicted minus measured"


def test_scans_are_shown_with_the_patients_right_on_the_left_and_the_front_up():
    image = np.zeros((4, 6, 3))
    image[3, 5, 1] = 1  # farthest right, farthest to the front, middle slice
    top, below = evaluation.figure_scans([image], [163], [0.34]).axes
    shown = top.images[0].get_array()
    assert shown.shape == (6, 4) and shown[0, 0] == 1 and shown.sum() == 1
    assert top.get_title() == "day 163\nweight 0.34"
    assert below.patches[0].get_width() == 0.34 and below.get_xlim() == (0, 1)


def test_many_scans_take_several_rows_in_one_grey_scale():
    images = [np.full((5, 5), float(i)) for i in range(8)]
    figure = evaluation.figure_scans(images, range(8), [1 / 8] * 8)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title()[:5] for axes in shown] == [f"day {i}" for i in range(8)]
    assert len({axes.images[0].get_clim() for axes in shown}) == 1


@pytest.mark.parametrize(
    ("images", "days", "message"),
    [
        ([], [], "a day and a weight per scan, got 0"),
        ([np.eye(3)], [1, 2], "got 1, 2, 1"),
        ([np.ones(3)], [1], r"arrays, got \[\(3,\)\]"),
    ],
)
def test_scans_that_cannot_be_shown_are_refused(images, days, message):
    with pytest.raises(ValueError, match=message):
        evaluation.figure_scans(images, days, [1.0] * len(images))


def test_a_report_of_a_thousand_patients_and_many_groups_takes_less_than_half_a_minute(tmp_path):
    table, draw = predictions(1000), np.random.default_rng(0)
    for number in range(6):
        table[f"group_{number}"] = draw.choice(list("abcd"), 1000)
    table.to_csv(tmp_path / "predictions.csv", index=False)
    start = time.process_time()
    evaluation.write_evaluation(str(tmp_path), ["volume"], training_mean=[120.0])
    assert time.process_time() - start < 30
    assert Page((tmp_path / "report.html").read_text("utf-8")).images


def test_a_report_says_what_the_model_must_not_be_used_for(html):
    assert "<h2>What the model must not be used for</h2>" in html and "<li>Diagnosis, treatment" in html


def test_reports_can_be_written_side_by_side_in_threads(folder):
    def write(i: int) -> str:
        return page.write_report(folder / f"{i}.html", title="Volume", sections=sections_of(folder)).read_text("utf-8")

    with ThreadPoolExecutor(4) as pool:
        assert all(len(Page(text).images) == 4 for text in pool.map(write, range(4)))


def test_one_patient_has_a_page_that_says_why_there_are_no_metrics(tmp_path: Path) -> None:
    cells = {"patient": ["a", "b"], "fold": "0", "volume": [1.0, None], "volume_predicted": [2.0, 3.0], "unit": "mL"}
    table = PredictionsTable(pd.DataFrame(cells | {"scans": 1, "days": "0", "weights": "1"}))
    table.write(tmp_path / "predictions.csv")
    evaluation.write_evaluation(str(tmp_path), ["volume"], training_mean=[120.0])
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored == {"volume": {"unit": "mL", "patients": 1, "left_out": 1}}
    page = (tmp_path / "report.html").read_text()
    assert "expected at least 2 patients with a measured value, got 1 of volume" in page
