"""The doors of the MONAI Label server: what is closed, what is refused, and that it goes on."""

from __future__ import annotations

import gzip
import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit

import nibabel as nib
import numpy as np
import pytest
import requests
from label_server import DATES, LabelServer

IMAGE = f"P001_{DATES[0]}"


def status_of(server: LabelServer, method: str, path: str, *, body: bytes = b"", headers: str = "") -> int:
    """Send a request as it stands: clients tidy up paths. 0 is a connection that was closed."""
    place = urlsplit(server.url)
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{place.port}\r\nConnection: close\r\n{headers}"
    with socket.create_connection(("127.0.0.1", place.port or 0), timeout=60) as made:
        made.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode("utf-8", "surrogatepass") + body)
        first = made.makefile("rb").readline()
    return int(first.split()[1]) if first else 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/model/mvreg"),
        ("PUT", "/model/mvreg"),
        ("DELETE", "/model/mvreg"),
        ("GET", "/logs/"),
        ("POST", "/reload"),
        ("POST", "/train/"),
        ("POST", "/batch/infer/mvreg"),
        ("POST", "/infer/wsi/mvreg"),
        ("GET", "/proxy/dicom/x"),
        ("PUT", "/datastore/"),
        ("PUT", "/datastore/image"),
        ("PUT", "/datastore/label"),
        ("PUT", "/datastore/image/info"),
        ("DELETE", f"/datastore/image?id={IMAGE}"),
        ("GET", "/datastore/dataset"),
        ("GET", "/datastore/label?label=x&tag=final"),
        ("POST", "/scoring/"),
        ("GET", "/ohif/index.html"),
        ("TRACE", "/info/"),
        ("GET", "/session/%2e%2e"),
        ("DELETE", "/session/.."),
        ("GET", "//info//"),
    ],
)
def test_what_a_prediction_does_not_need_is_closed(label_server: LabelServer, method: str, path: str) -> None:
    assert status_of(label_server, method, path) == 403


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../studies", "..", "a/../../b", "a\\b", "a\0b", ".lock", "%2e%2e/x", "x" * 999]
)
@pytest.mark.parametrize("door", ["/infer/mvreg", "/datastore/image", "/datastore/image/info"])
def test_a_path_is_no_image(label_server: LabelServer, door: str, name: str) -> None:
    method = "POST" if door.startswith("/infer") else "GET"
    assert status_of(label_server, method, f"{door}?image={quote(name, safe='')}") in (400, 404, 422)


@pytest.mark.parametrize("name", ["..", "../app", "a" * 36, "0" * 36, "../" * 12, "x"])
def test_a_path_is_no_session(label_server: LabelServer, name: str) -> None:
    answer = label_server.infer({}, session_id=name)
    assert answer.status_code in (400, 404)


@pytest.mark.parametrize(
    "params", [{"session": {"name": "../.."}}, {"image": "/etc/passwd"}, {"image": ["/etc/passwd"]}]
)
def test_params_cannot_stand_in_for_what_is_checked(label_server: LabelServer, params: dict[str, Any]) -> None:
    answer = label_server.infer(params, image="nothing")
    assert answer.status_code in (400, 404)


@pytest.mark.parametrize(
    "params",
    ["[", "{", "null", "5", '"a"', "[]", "[1]", "NaN", "{'a': 1}", "[" * 100_000, '{"a":' * 50_000, "\ufeff{}"],
)
def test_params_that_are_no_json_object_are_refused(label_server: LabelServer, params: str) -> None:
    assert label_server.infer(params, image=IMAGE).status_code == 400


def test_a_body_of_another_kind_is_refused_and_not_repeated(label_server: LabelServer) -> None:
    for body in (b"\x9e\xff secret", b"[1]", b"{"):
        answer = requests.post(f"{label_server.url}/activelearning/random", data=body, timeout=60)
        assert answer.status_code == 422 and "secret" not in answer.text


def test_an_image_is_not_given_where_no_map_is_asked_for(label_server: LabelServer) -> None:
    answer = label_server.infer({}, image=IMAGE, output="image")
    assert answer.status_code == 400 and "saliency" in answer.json()["detail"]


def test_an_archive_is_not_unpacked(label_server: LabelServer) -> None:
    for value in ("true", "1", "TRUE", "on", "yes", "t", "y"):
        answer = requests.put(
            f"{label_server.url}/session/", params={"uncompress": value}, files={"files": ("a.tar", b"x")}, timeout=10
        )
        assert answer.status_code == 400, value


def test_a_web_page_of_another_origin_is_refused(label_server: LabelServer) -> None:
    assert status_of(label_server, "GET", "/info/", headers="Origin: http://evil.example\r\n") == 403
    assert status_of(label_server, "GET", "/info/", headers="Origin: null\r\n") == 403


def test_a_name_that_leads_to_this_machine_is_refused(label_server: LabelServer) -> None:
    answer = requests.get(f"{label_server.url}/info/", headers={"Host": "evil.example"}, timeout=60)
    assert answer.status_code == 400


def test_others_are_answered_while_a_prediction_runs(label_server: LabelServer) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(label_server.infer, {"scans": "patient", "saliency": "occlusion"}, image=IMAGE)
        answered = 0
        while not slow.done():
            assert requests.get(f"{label_server.url}/info/", timeout=60).ok
            answered += not slow.done()
    assert slow.result().ok and answered >= 3


def test_predictions_at_one_time_do_not_mix(label_server: LabelServer) -> None:
    images = [IMAGE, f"P002_{DATES[0]}"]
    asked = {"saliency": "gradcam"}
    alone = [map_of(label_server.infer(asked, image=image, output="image")) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = [pool.submit(label_server.infer, asked, image=image, output="image") for image in images * 2]
    for one, expected in zip(together, alone * 2, strict=True):
        np.testing.assert_array_equal(map_of(one.result()), expected)


def map_of(answer: requests.Response) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj)


_NAMES = [IMAGE, "P001", "", "../x", "/etc/passwd", "%00", "x" * 5000, "é", "\ud800", "*", "P001_*", ".", "CON"]
_VALUES: list[Any] = [
    *_NAMES,
    None,
    True,
    0,
    -1,
    1e308,
    [],
    {},
    [[]],
    ["a"] * 1000,
    {"a": {"a": 1}},
    "gradcam",
    "patient",
]
_FIELDS = [
    "image",
    "images",
    "patient",
    "scans",
    "saliency",
    "saliency_image",
    "covariates",
    "session",
    "model",
    "device",
]
_PATHS = [
    "/infer/mvreg",
    "/infer/../model/mvreg",
    "/session/",
    "/info/",
    "/datastore/",
    "/datastore/image",
    "/activelearning/random",
]


def odd_request(draw: random.Random) -> tuple[str, str, bytes, str]:
    """Method, path, body and headers: near what is right, and wrong in one way or several."""
    if draw.random() < 0.7:
        method, path = "POST", "/infer/mvreg"
    else:
        method, path = draw.choice(["POST", "PUT", "GET", "DELETE", "HEAD", "PATCH", "X" * 30]), draw.choice(_PATHS)
    query = [f"image={IMAGE}"] if draw.random() < 0.5 else []
    field = draw.choice(["image", "session_id", "output", "uncompress", "x"])
    query.append(f"{field}={quote(draw.choice(_NAMES), errors='replace')}")
    params = json.dumps({draw.choice(_FIELDS): draw.choice(_VALUES) for _ in range(draw.randrange(4))}).encode()
    if draw.random() < 0.3:
        at = draw.randrange(len(params))
        params = params[:at] + bytes([draw.randrange(256)]) + params[at + draw.randrange(3) :]
    right = "multipart/form-data; boundary=b"
    kind = draw.choice([right] * 5 + ["multipart/form-data", "application/json", "\x01", "text/plain"])
    part = b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n' + params + b"\r\n--b--\r\n"
    if draw.random() < 0.2:
        part = part[: draw.randrange(len(part))]
    return method, f"{path}?{'&'.join(query)}", part, f"Content-Type: {kind}\r\n"


def throw(server: LabelServer, seed: int, times: int) -> list[int]:
    draw = random.Random(seed)
    return [
        status_of(server, *request[:2], body=request[2], headers=request[3])
        for request in (odd_request(draw) for _ in range(times))
    ]


def test_hostile_requests_are_refused_and_the_service_goes_on(label_server: LabelServer) -> None:
    before = label_server.infer({"scans": "patient"}, image=IMAGE).json()["predictions"]
    found = throw(label_server, seed=7, times=400)
    assert {code for code in found if code >= 500} == set()
    assert found.count(200) > 5 and found.count(400) > 50 and found.count(404) > 5
    assert label_server.infer({"scans": "patient"}, image=IMAGE).json()["predictions"] == before


@pytest.mark.slow
def test_twenty_thousand_hostile_requests_change_nothing(label_server: LabelServer) -> None:
    before = label_server.infer({"scans": "patient"}, image=IMAGE).json()["predictions"]
    for seed in range(50):
        found = throw(label_server, seed=seed, times=400)
        assert {code for code in found if code >= 500} == set(), seed
    assert label_server.infer({"scans": "patient"}, image=IMAGE).json()["predictions"] == before
