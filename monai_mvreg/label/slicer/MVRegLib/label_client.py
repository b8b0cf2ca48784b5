"""What 3D Slicer asks the server: files of one patient -> prediction and map. Needs requests, which Slicer has."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

MODEL = "mvreg"


class ServerError(RuntimeError):
    """The server did not answer, or refused; the message is for the user."""


@dataclass(frozen=True)
class Reply:
    """An answer: ``prediction`` as ``mvreg predict --json`` has it, the id of each of its scans, and a map as NRRD."""

    prediction: Mapping[str, Any]
    images: Sequence[str]
    mapped: str | None
    volume: bytes | None

    def in_words(self) -> str:
        """Value, unit and interval of each number, then the warnings."""
        lines = []
        for number in self.prediction["numbers"]:
            line = f"{number['name']}: {number['value']:.4g}" + f" {number['unit']}" * (number["unit"] != "1")
            if number["low"] is not None:
                line += f" ({number['confidence']:.0%} interval {number['low']:.4g} to {number['high']:.4g})"
            lines.append(line)
        lines += [f"left out: {one['address']}: {one['reason']}" for one in self.prediction["left_out"]]
        lines += [f"warning: {one['message']}" for one in self.prediction["warnings"]]
        return "\n".join(lines)


class LabelClient:
    """A server that ``mvreg label`` started.

    Args:
        url: its address, ``http://127.0.0.1:8000``, or ``https://name:password@host`` of a proxy before it.
        timeout: seconds to wait for a prediction.
    """

    def __init__(self, url: str, *, timeout: float = 600) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self.place = re.sub(r"//[^/]*@", "//", self.url)  # what may be shown

    def describe(self) -> str:
        """What the server predicts, in its own words.

        Raises:
            ServerError: if nothing answers there, or something else.
        """
        models = self._ask("GET", "/info/").json().get("models", {})
        if MODEL not in models:
            raise ServerError(f"expected a server that mvreg label started, {self.place} is another one")
        return str(models[MODEL]["description"])

    def predict_files(self, files: Sequence[Path], *, saliency: str = "none", mapped: str | None = None) -> Reply:
        """Send the scans of one patient, predict, and have the server delete them.

        Args:
            files: one volume each; a date in the name (2024-03-31) is the day of the scan.
            saliency: ``none``, ``gradcam`` or ``occlusion``.
            mapped: the file whose map is wanted, by its name without extension; by default that of the newest scan.

        Raises:
            ServerError: if the server refuses, with its reason.
        """
        opened = [("files", (file.name, file.read_bytes())) for file in files]
        session = self._ask("PUT", "/session/", files=opened).json()["session_id"]
        try:
            return self._predict({"session_id": session}, {"saliency": saliency, "saliency_image": mapped})
        finally:
            self._ask("DELETE", f"/session/{session}")

    def predict_stored(self, patient: str, *, saliency: str = "none", mapped: str | None = None) -> Reply:
        """Predict a patient whose scans the server has, in its folder or archive; arguments as above."""
        asked = {"patient": patient, "saliency": saliency, "saliency_image": mapped}
        return self._predict({"image": patient}, asked)

    def _predict(self, query: Mapping[str, str], params: Mapping[str, Any]) -> Reply:
        asked = json.dumps({**params, "result_extension": ".nrrd", "result_dtype": "float32"})
        answer = self._ask("POST", f"/infer/{MODEL}", params=query, files={"params": (None, asked)})
        parts = parts_of(answer.content, answer.headers["content-type"])
        reply = json.loads(parts.get("params", answer.content))
        mapped = reply["saliency"]["image"] if reply["saliency"] else None
        return Reply(reply["predictions"][0], reply["images"], mapped, parts.get("image"))

    def _ask(self, method: str, path: str, **request: Any) -> requests.Response:
        try:
            answer = requests.request(method, self.url + path, timeout=self.timeout, **request)
        except requests.RequestException as error:
            raise ServerError(f"expected a server at {self.place}, none answers ({type(error).__name__})") from None
        if not answer.ok:
            try:
                reason = answer.json()["detail"]
            except (ValueError, KeyError, TypeError):
                reason = answer.reason
            raise ServerError(f"the server refuses ({answer.status_code}): {reason}")
        return answer


def parts_of(content: bytes, content_type: str) -> dict[str, bytes]:
    """The parts of a multipart answer by name; nothing if it is none. The boundary does not occur inside them."""
    found = re.match(r'multipart/form-data.*boundary="?([^";]+)', content_type)
    if found is None:
        return {}
    parts = {}
    for part in content.split(b"--" + found[1].encode())[1:-1]:
        head, _, body = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        if name := re.search(rb'\bname="([^"]+)"', head):
            parts[name[1].decode()] = body.removesuffix(b"\r\n")
    return parts
