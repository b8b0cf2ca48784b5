"""MONAI Label's web service with the doors closed that a prediction does not need; uvicorn starts ``guard:app``."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

from monai_mvreg.label.serve import restore_pydicom_names

restore_pydicom_names()

from fastapi import BackgroundTasks, Depends, Form, HTTPException  # noqa: E402
from fastapi.exceptions import RequestValidationError  # noqa: E402
from fastapi.routing import APIRoute  # noqa: E402
from monailabel.app import app as label_app  # noqa: E402
from monailabel.config import settings  # noqa: E402
from monailabel.endpoints.infer import ResultType, send_response  # noqa: E402
from monailabel.endpoints.user.auth import RBAC  # noqa: E402
from monailabel.interfaces.utils.app import app_instance  # noqa: E402
from starlette.responses import JSONResponse  # noqa: E402

logger = logging.getLogger(__name__)
Scope = dict[str, Any]
Asgi = Callable[[Scope, Any, Any], Awaitable[None]]

# The names under which clients may reach this server, so that no web page can under another; any if there is none.
HOSTS = "MVREG_LABEL_HOSTS"
_OPEN = {
    "GET": r"/|/docs|/openapi\.json|/favicon\.ico|/static/.*|/info/?|/auth/?|/datastore/?|/datastore/image(/info)?"
    r"|/session/[0-9a-f-]{36}|/train/?",
    "HEAD": r"/datastore/image",
    "POST": r"/infer/[\w.-]{1,80}|/activelearning/random",
    "PUT": r"/session/",
    "DELETE": r"/session/[0-9a-f-]{36}",
}
_QUERY = {
    "image": re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]{0,200}"),
    "session_id": re.compile(r"([0-9a-f-]{36})?"),
    "uncompress": re.compile(r"(?i)(false|0|no|off)?"),
    "output": re.compile(r"stats|all|image|json"),
}


def predict_request(
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: str = Form("{}"),
    output: ResultType | None = None,
    user: Any = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER)),  # noqa: B008, as FastAPI has it
) -> Any:
    """Answer ``POST /infer/<model>`` in a thread of its own: MONAI Label's own does, and all others wait for it.

    Raises:
        HTTPException: 400 if ``params`` are no JSON object, or a volume is asked for without saliency; and as the app.
    """
    try:
        request = json.loads(params)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise HTTPException(400, "expected params to be a JSON object")
    request = {**{"image": image}, **request, "model": model}
    if session_id:
        request["session"] = {"name": session_id}
    instance = app_instance()
    result = instance.infer(request)
    if output == ResultType.image and result["file"] is None:
        raise HTTPException(400, "expected saliency in params where the output is an image, got none")
    return send_response(instance.datastore(), result, output, background_tasks)


def refusal(scope: Scope) -> tuple[int, str] | None:
    """Status and reason if a request may not come in, from its method, path, query and headers alone."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    hosts = [name for name in os.environ.get(HOSTS, "").split(",") if name]
    if hosts and re.sub(r":\d+$", "", headers.get("host", "")) not in hosts:
        return 400, f"expected the host to be one of {', '.join(hosts)}"
    origins = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    if (origin := headers.get("origin")) is not None and origin not in origins:
        return 403, "expected no request of a web page of another origin"
    if not re.fullmatch(_OPEN.get(scope["method"], "(?!)"), scope["path"]):
        return 403, "expected a request that a prediction needs: this server does nothing else"
    for name, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if name in _QUERY and not _QUERY[name].fullmatch(value):
            return 400, f"expected another value of {name}"
    return None


async def app(scope: Scope, receive: Any, send: Any) -> None:
    """The service: refuse, or hand on to MONAI Label."""
    refused = refusal(scope) if scope["type"] == "http" and scope["method"] != "OPTIONS" else None
    if refused is None:
        await _theirs(scope, receive, send)
        return
    status, reason = refused
    logger.warning(json.dumps({"event": "refused", "status": status}))
    await JSONResponse({"detail": reason}, status)(scope, receive, send)


def refuse_fields(_request: Any, error: Exception) -> JSONResponse:
    """Answer to fields of another kind, without repeating them: they may be anything, and of a patient."""
    fields = sorted({".".join(map(str, one["loc"][:2])) for one in error.errors()})  # type: ignore[attr-defined]
    return JSONResponse({"detail": f"expected other fields than these: {', '.join(fields)[:200]}"}, 422)


_theirs: Asgi = label_app
label_app.add_exception_handler(RequestValidationError, refuse_fields)
# Before MONAI Label's own, which it replaces.
label_app.router.routes.insert(0, APIRoute("/infer/{model}", predict_request, methods=["POST"]))
