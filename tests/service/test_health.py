"""Is it well, what was counted, and a log that names nobody."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from monai_mvreg.service.health import JsonLines, Metrics, serve_health

TROUBLE: list[str] = []


@pytest.fixture
def url() -> Iterator[str]:
    TROUBLE.clear()
    metrics = Metrics()
    metrics.objects.labels("stored").inc(3)
    server = serve_health(("127.0.0.1", 0), metrics, lambda: TROUBLE)
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_well_service_says_so(url: str) -> None:
    with urllib.request.urlopen(f"{url}/healthz") as answer:
        assert json.load(answer) == {"well": True, "trouble": []}


def test_trouble_is_an_error_of_http_and_named(url: str) -> None:
    TROUBLE.append("no space left")
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{url}/healthz")
    assert error.value.code == 503 and json.load(error.value)["trouble"] == ["no space left"]


def test_metrics_are_those_of_prometheus_also_in_trouble(url: str) -> None:
    TROUBLE.append("no space left")
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        assert b'mvreg_objects_total{result="stored"} 3.0' in answer.read()


def test_nothing_else_is_served(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{url}/etc/passwd")
    assert error.value.code == 404


def line(name: str, message: str, **more: object) -> dict[str, object]:
    record = logging.LogRecord(name, logging.ERROR, "x.py", 7, message, None, None)
    for key, value in more.items():
        setattr(record, key, value)
    return json.loads(JsonLines().format(record))


def test_our_own_words_are_logged_with_their_figures() -> None:
    found = line("monai_mvreg.service.worker", "report sent", facts={"study": "12ab"})
    assert (found["event"], found["study"], found["level"]) == ("report sent", "12ab", "error")


def test_what_other_libraries_say_is_not_logged() -> None:
    found = line("pydicom", "Invalid value for VR UI: 'ZZPHI'")
    assert "ZZPHI" not in json.dumps(found) and found["library"] == "pydicom"


def test_of_an_exception_the_kind_and_place_are_logged_and_never_the_text() -> None:
    try:
        raise ValueError("ZZPHI")
    except ValueError:
        found = line("monai_mvreg.service.worker", "failed", exc_info=sys.exc_info())
    assert "ZZPHI" not in json.dumps(found) and found["exception"] == "ValueError"
    assert str(found["raised"]).startswith("test_of_an_exception")


def test_a_thread_that_ends_by_an_exception_is_told_by_kind_and_place_alone() -> None:
    code = (
        "import threading; from monai_mvreg.service.health import start_log; start_log()\n"
        "def work(): raise ValueError('Mustermann')\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = json.loads(done.stderr)
    assert line["exception"] == "ValueError" and line["raised"].endswith("work:2") and "Mustermann" not in done.stderr
