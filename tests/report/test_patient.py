"""A patient's report: what a clinician reads is right, complete, and says nothing of who the patient is."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_mvreg.cohort.thumbnails import ScanPicture, picture_of
from monai_mvreg.predict.prediction import (
    PURPOSE,
    ModelIdentity,
    NoPrediction,
    PredictedNumber,
    Prediction,
    PredictionWarning,
    SurvivalCurve,
    UnusedScan,
    UsedScan,
)
from monai_mvreg.report.patient import write_index, write_patient_report

VOID = {"meta", "img", "link", "br", "hr"}
HASHES = ("a1b2c3d4e5f6" + "0" * 52, "0f1e2d3c4b5a" + "0" * 52)
TINY = " \N{MULTIPLICATION SIGN} 10⁻⁵"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Collects tags and text, and fails on a tag that is not closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def prediction(count: int = 3, **change: Any) -> Prediction:
    """Scans of days 0, 30, 60, ...: all but the first lower the number."""
    parts: list[tuple[float, ...] | None] = [(12.34,), *[(-5.0,)] * (count - 1)] if count > 1 else [None]
    used = tuple(
        UsedScan(f"Meier/visit{i}.nii.gz", 30.0 * i, "axial", "MR", 1 / count, part, "0" * 64)
        for i, part in enumerate(parts)
    )
    made = Prediction(
        patient="Meier^Anna",
        numbers=(PredictedNumber("brain_volume", "mL", 120.52, low=110.04, high=131.02, confidence=0.9),),
        survival=None,
        scans=used,
        newest_visit=(-2.0,) if count > 1 else None,
        left_out=(),
        warnings=(),
        model=ModelIdentity("Multi-scan regression", "0.1.0", "monai-mvreg 0.1.0", HASHES, "9" * 64),
    )
    return replace(made, **change)


def time_to_event(median: float | None) -> Prediction:
    curve = SurvivalCurve(median, (365.0, 1095.0), (0.123, 0.004), (100.0, 365.0, 1200.0), (0.95, 0.87, 0.6))
    return prediction(numbers=(PredictedNumber("log_risk", "1", 0.416),), survival=curve)


def written(folder: Path, made: Prediction, **options: Any) -> str:
    return write_patient_report(folder / "report.html", made, **options).read_text("utf-8")


def read(folder: Path, made: Prediction, **options: Any) -> str:
    return Page(written(folder, made, **options)).text


def full() -> Prediction:
    """Everything that a report can hold, with the patient's name wherever a name may slip in."""
    return prediction(
        warnings=(
            PredictionWarning("spacing", "voxels of 5 mm, the training saw 1 mm", 1),
            PredictionWarning("spacing", "voxels of 5 mm, the training saw 1 mm", 2),
            PredictionWarning("intensity", "Meier/visit0.nii.gz is darker than 99 of 100 training scans", 0),
            PredictionWarning("number of scans", "3 scans, the training saw 4 to 9"),
        ),
        left_out=(
            UnusedScan("Meier/scout.dcm", "a localizer of Meier^Anna"),
            UnusedScan("Meier/kaputt.dcm", "kaputt.dcm: damaged"),
        ),
    )


def pictures() -> list[ScanPicture]:
    volume = np.random.default_rng(0).normal(size=(40, 50, 20))
    shown = picture_of(volume, np.where(volume > 2, -1.0, 0.1), spacing=(1, 1, 1), caption="T1 of Meier^Anna")
    return [shown, picture_of(volume, spacing=(1, 1, 2)), ScanPicture(None, None, "not shown: text may be burned in")]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (PredictedNumber("v", "mL", 120.52, 110.04, 131.02, 0.9), ["120.5 mL", "90 % interval: 110.0 to 131.0 mL"]),
        (PredictedNumber("v", "mm3", 2930.4, 2510.2, 3350.6, 0.9), ["2930 mm3", "2510 to 3350 mm3"]),
        (PredictedNumber("v", "mm3", 1234567.8, 1.1e6, 1.41e6, 0.9), ["1 235 000 mm3", "1 100 000 to 1 410 000 mm3"]),
        (PredictedNumber("v", "mm3", 1234567.8), ["1 230 000 mm3", "no interval"]),
        (
            PredictedNumber("v", "m2/s", 0.000012, 0.00001, 0.000014, 0.9),
            [f"1.20{TINY} m2/s", f"1.00{TINY} to 1.40{TINY} m2/s"],
        ),
        (PredictedNumber("v", "1", 0.000012), [f"1.20{TINY}no interval"]),
        (PredictedNumber("v", "a", -62.34, -69.6, -55.1, 0.955), ["\N{MINUS SIGN}62.3 years", "95.5 % interval"]),
        (PredictedNumber("v", "1", 0.0), ["0.00"]),
    ],
)
def test_a_number_has_the_digits_that_its_interval_bears_out(
    number: PredictedNumber, words: list[str], tmp_path: Path
) -> None:
    text = read(tmp_path, prediction(1, numbers=(number,)))
    assert [word for word in words if word not in text] == []


def test_the_sentence_to_an_interval_says_that_it_holds_for_a_share_of_patients(tmp_path: Path) -> None:
    assert "For 90 of 100 new patients" in read(tmp_path, prediction())
    assert "is not known: the model has no interval" in read(
        tmp_path, prediction(numbers=(PredictedNumber("v", "mL", 1.0),))
    )


def test_two_numbers_are_both_shown_with_their_own_contributions(tmp_path: Path) -> None:
    scans = tuple(replace(scan, contributions=(1.0, 0.5 * i)) for i, scan in enumerate(prediction().scans))
    numbers = (*prediction().numbers, PredictedNumber("thickness", "mm", 2.5))
    text = read(tmp_path, prediction(numbers=numbers, scans=scans, newest_visit=(1.0, -0.25)))
    assert "120.5 mL" in text and "2.50 mm" in text
    assert "Contribution to brain volume [mL]" in text and "Contribution to thickness [mm]" in text
    assert "lowered thickness by 0.25 mm: without it the prediction would be 2.75 mm" in text


def test_neither_the_patient_nor_a_file_is_named_unless_asked(tmp_path: Path) -> None:
    made = full()
    secret = re.sub('base64,[^"]*', "", written(tmp_path, made, pictures=pictures()))
    assert re.search("Meier|Anna|visit0|scout|kaputt", secret) is None and "damaged" in secret
    told = read(tmp_path, made, pictures=pictures(), identify=True)
    wanted = ["Meier^Anna", *(scan.address for scan in made.scans), *(item.address for item in made.left_out)]
    assert [name for name in wanted if name not in told] == []


def test_a_report_is_valid_runs_nothing_and_asks_for_nothing(tmp_path: Path) -> None:
    cohort = {"brain_volume": tuple(range(80, 185, 5))}
    page = Page(written(tmp_path, full(), pictures=pictures(), cohort=cohort))
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"} == set()
    addresses = [found for _, given in page.tags for name, found in given.items() if name in ("src", "href", "srcset")]
    assert addresses and all(address and address.startswith("data:image/") for address in addresses)
    assert "url(" not in written(tmp_path, full()) and "@import" not in written(tmp_path, full())


def test_a_reader_who_cannot_see_gets_a_text_for_each_picture_and_headers_for_each_table(tmp_path: Path) -> None:
    page = Page(written(tmp_path, full(), pictures=pictures(), cohort={"brain_volume": tuple(range(80, 185, 5))}))
    images = page.all("img")
    assert len(images) == 4 and all(image["alt"] for image in images)
    assert len(page.all("table")) == 3 and {head["scope"] for head in page.all("th")} == {"row", "col"}
    assert page.all("html") == [{"lang": "en"}]


def test_every_warning_stands_before_the_scans_and_those_of_several_scans_once(tmp_path: Path) -> None:
    text = read(tmp_path, full())
    assert "3 warnings" in text
    sentences = [
        "Scans 2 and 3: voxels of 5 mm, the training saw 1 mm (spacing)",
        "Scan 1: [hidden] is darker than 99 of 100 training scans (intensity)",
        "3 scans, the training saw 4 to 9 (number of scans)",
    ]
    assert all(0 < text.index(sentence) < text.index("Scan by scan") for sentence in sentences)
    assert "No check found" in read(tmp_path, prediction())


def test_many_scans_with_one_warning_are_told_as_a_range(tmp_path: Path) -> None:
    warnings = tuple(PredictionWarning("spacing", "5 mm", i) for i in (0, 1, 2, 3, 5))
    assert "Scans 1 to 4 and 6: 5 mm" in read(tmp_path, prediction(7, warnings=warnings))


def test_what_was_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    left_out = tuple(UnusedScan(f"{i}.dcm", "a localizer") for i in range(4))
    text = read(tmp_path, prediction(left_out=left_out))
    assert re.search(r"a localizer\s*4", text) and "4 files or series were found and not used" in text


def test_the_table_of_the_scans_holds_day_weight_and_signed_contribution(tmp_path: Path) -> None:
    html = written(tmp_path, full())
    row = '<tr><th scope="row">2</th><td>30</td><td>MR</td><td>axial</td><td>0.33</td><td>\N{MINUS SIGN}5.0</td>'
    assert row + "<td>spacing</td>" in html and "<td>+12.3</td>" in html


def test_an_only_scan_has_no_contribution_and_the_report_says_why(tmp_path: Path) -> None:
    text = read(tmp_path, prediction(1))
    assert "There is one scan only" in text and "newest visit" not in text and "Contribution [mL]" not in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (-2.0, "visit (scan 3, day 60) lowered brain volume by 2.0 mL: without it the prediction would be 122.5 mL."),
        (0.004, "raised brain volume by less than 0.1 mL."),
    ],
)
def test_what_the_newest_visit_changed_is_a_sentence(change: float, sentence: str, tmp_path: Path) -> None:
    assert sentence in read(tmp_path, prediction(newest_visit=(change,)))


def test_a_time_to_event_is_told_as_median_and_chances(tmp_path: Path) -> None:
    text = read(tmp_path, time_to_event(812.4))
    assert "812 days" in text and "2.2 years" in text
    assert re.search(r"chance of the event by day 365\s*12 %", text)
    assert re.search(r"chance of the event by day 1095\s*below 1 %", text)
    assert "88 % by day 365" in text


def test_a_median_that_is_not_reached_is_said_so(tmp_path: Path) -> None:
    assert "more than half are free of the event on day 1200" in read(tmp_path, time_to_event(None))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (37.0, "higher than what was measured in about 37 of 100"),
        (-1.0, "lower than that of every"),
        (101.0, "higher than that of every"),
    ],
)
def test_where_the_patient_stands_is_the_share_of_the_cohort_below(value: float, sentence: str, tmp_path: Path) -> None:
    made = prediction(numbers=(PredictedNumber("v", "mL", value, value - 10, value + 10, 0.9),))
    text = read(tmp_path, made, cohort={"v": tuple(float(x) for x in range(0, 101, 5)), "other": (1.0,)})
    assert sentence in text
    assert ("The interval covers the values of about 20 of 100" in text) == (value == 37.0)


def test_half_of_the_patients_with_the_same_grade_count_as_below(tmp_path: Path) -> None:
    grades = (0.0,) * 5 + (2.0,) * 11 + (3.0,) * 5
    text = read(tmp_path, prediction(numbers=(PredictedNumber("v", "1", 2.0),)), cohort={"v": grades})
    assert "in about 50 of 100" in text


@pytest.mark.parametrize("cohort", [tuple(range(20)), tuple(range(21, 0, -1)), (float("nan"),) * 21])
def test_a_wrong_cohort_is_refused(cohort: tuple[float, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cohort brain_volume: expected 21 ascending percentiles"):
        written(tmp_path, prediction(), cohort={"brain_volume": cohort})


def test_pictures_of_some_scans_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a picture for each of 3 scans, got 2"):
        written(tmp_path, prediction(), pictures=pictures()[:2])


def test_a_picture_that_may_not_be_shown_is_replaced_by_the_reason(tmp_path: Path) -> None:
    assert "not shown: text may be burned in" in read(tmp_path, prediction(), pictures=pictures())


def test_purpose_and_model_are_named_with_short_hashes(tmp_path: Path) -> None:
    text = read(tmp_path, prediction())
    assert text.count(PURPOSE) == 2 and "must not be used to diagnose" in text
    assert "Multi-scan regression, version 0.1.0" in text and "a1b2c3d4e5f6, 0f1e2d3c4b5a" in text
    assert HASHES[0][:13] not in text


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    made = prediction(numbers=(PredictedNumber('<b>"x', "<i>", 1.0),), warnings=(PredictionWarning("<u>", "</main>"),))
    assert not {"b", "i", "u"} & {tag for tag, _ in Page(written(tmp_path, made)).tags}


def test_a_report_of_64_scans_stays_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(128, 128))
    many = [picture_of(noise, noise, spacing=(1, 1)) for _ in range(64)]
    assert len(written(tmp_path, prediction(64), pictures=many)) < 6e6


def test_the_index_leads_from_the_highest_value_down_to_the_reports(tmp_path: Path) -> None:
    made = [
        prediction(patient=f"Meier{i}", numbers=(PredictedNumber("v", "mL", value, value - 10, value + 10, 0.9),))
        for i, value in enumerate([20.0, 50.0, 30.0])
    ]
    made[2] = replace(made[2], warnings=full().warnings)
    html = write_index(tmp_path / "index.html", made, reports=["1.html", "2.html", "3.html"]).read_text("utf-8")
    page = Page(html)
    assert [link["href"] for link in page.all("a")] == ["2.html", "3.html", "1.html"]
    assert "<td>30.0</td><td>20.0 to 40.0</td><td>3</td><td>0</td><td>3</td>" in html and "Meier" not in html
    named = write_index(tmp_path / "index.html", made, identify=True).read_text("utf-8")
    assert "Meier1" in named and "<a " not in named


def test_the_index_names_patients_without_a_prediction_by_their_place(tmp_path: Path) -> None:
    lost = NoPrediction("Meier9", "expected a scan that can be read, got none: Meier9.nii: no scan")
    made = [prediction(), lost, prediction()]
    html = write_index(tmp_path / "index.html", made, reports=["1.html", "2.html", "3.html"]).read_text("utf-8")
    assert [link["href"] for link in Page(html).all("a")] == ["1.html", "3.html"]
    assert "<h2>Without a prediction</h2>" in html and '<th scope="row">2</th>' in html and "Meier9" not in html
    named = Page(write_index(tmp_path / "index.html", made, identify=True).read_text("utf-8")).text
    assert "Meier9.nii: no scan" in named


def test_the_index_of_a_time_to_event_holds_its_chances(tmp_path: Path) -> None:
    made = [time_to_event(812.4), time_to_event(None)]
    text = Page(write_index(tmp_path / "index.html", made).read_text("utf-8")).text
    assert "812" in text and "not reached" in text and "12 %" in text


@pytest.mark.parametrize("made", [[], [prediction(), time_to_event(1.0)]])
def test_an_index_of_nothing_or_of_different_numbers_is_refused(made: list[Prediction], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected predictions of the same numbers"):
        write_index(tmp_path / "index.html", made)


class Browser:
    """Chromium by its own protocol over two pipes: messages are JSON and end with a zero byte."""

    def __init__(self, profile: Path) -> None:
        inwards, self.write = os.pipe()
        self.read, outwards = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        options.append("--window-size=800,1000")
        command = [str(CHROMIUM), *options, f"--user-data-dir={profile}"]
        # Chromium takes commands from 3 and answers on 4.
        moved = (
            "import os, sys; _, i, o, *rest = sys.argv; os.dup2(int(i), 3); os.dup2(int(o), 4); os.execv(rest[0], rest)"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", moved, str(inwards), str(outwards), *command],
            pass_fds=(inwards, outwards),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(inwards)
        os.close(outwards)
        self.buffer, self.number, self.events, self.session = b"", 0, list[dict[str, Any]](), {}
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Network", "Log", "Runtime", "Page"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters, **self.session}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        answer = self.until(lambda message: message.get("id") == self.number)
        assert "result" in answer, answer
        return dict(answer["result"])

    def until(self, wanted: Any) -> dict[str, Any]:
        deadline = time.monotonic() + 90
        while True:
            while b"\0" in self.buffer:
                text, _, self.buffer = self.buffer.partition(b"\0")
                message = json.loads(text)
                self.events.append(message)
                if wanted(message):
                    return message
            assert select.select([self.read], [], [], max(deadline - time.monotonic(), 0))[0], "the browser is silent"
            piece = os.read(self.read, 1 << 16)
            assert piece, "the browser ended"
            self.buffer += piece

    def open(self, page: Path) -> None:
        self.events.clear()
        self.ask("Page.navigate", url=page.as_uri())
        if not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.until(lambda event: event.get("method") == "Page.loadEventFired")

    def value(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def requests(self) -> list[str]:
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in sent if not one["request"]["url"].startswith("data:")]

    def complaints(self) -> list[dict[str, Any]]:
        kinds = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}
        return [event for event in self.events if event.get("method") in kinds]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.process.kill()
    started.process.wait()
    os.close(started.read)
    os.close(started.write)


def test_a_browser_shows_every_picture_asks_for_nothing_and_complains_of_nothing(
    browser: Browser, tmp_path: Path
) -> None:
    long = "expected even distances in series " + "1.2.840.113619." * 20
    made = replace(full(), left_out=(UnusedScan("x" * 200, long),), warnings=(PredictionWarning("a check", long),))
    page = tmp_path / "report.html"
    write_patient_report(page, made, pictures=pictures(), cohort={"brain_volume": tuple(range(80, 185, 5))})
    browser.open(page)
    assert browser.value("[...document.images].map(i => i.complete && i.naturalWidth > 0)") == [True] * 4
    assert browser.value("document.documentElement.scrollWidth <= innerWidth") is True
    assert browser.requests() == [page.as_uri()] and browser.complaints() == []


def test_the_browser_would_tell_of_a_request(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("x")</script>', encoding="utf-8")
    browser.open(page)
    assert "http://127.0.0.1:9/x.png" in browser.requests() and browser.complaints()
