"""The HTTP interface: routes, their documentation, and the page."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

import psf
from psf.tools.serving.answers import FORMATS, Answer, Health, ModelDescription, Options, Reason, Segmentation
from psf.tools.serving.gate import Gate, refuse
from psf.tools.serving.limits import Refusal
from psf.tools.serving.metrics import METRICS_TYPE
from psf.tools.serving.service import Service
from psf.tools.serving.uploads import BYTES, FIELD, MULTIPART, receive_image

__all__ = ["build_app"]

PAGE = Path(__file__).parent / "page"
RESULT_HEADER = "X-PSF-Result"  # the id of a result, in answers that have no JSON
router = APIRouter()

_FILE = {"type": "string", "format": "binary"}
_BODY = {
    "required": True,
    "content": {
        MULTIPART: {"schema": {"type": "object", "required": [FIELD], "properties": {FIELD: _FILE}}},
        BYTES: {"schema": _FILE},
        "image/*": {"schema": _FILE},
    },
}
_RESULT: dict[str, Any] = {
    "description": "The result in the format that was asked for",
    "content": {kind: {"schema": _FILE} for kind in dict.fromkeys(FORMATS.values()) if kind.startswith("image/")},
}


def _responses(**reasons: str) -> dict[int | str, dict[str, Any]]:
    return {int(name[1:]): {"model": Reason, "description": text} for name, text in reasons.items()}


_REFUSALS = _responses(
    s429="The queue is full", s422="An option is wrong, or no image", s503="The queue was too slow, or the server stops"
)
_UPLOAD_REFUSALS = _responses(s408="A slow upload", s413="Too many bytes or pixels", s415="Another content type")


def build_app(service: Service, hosts: Collection[str] = ()) -> FastAPI:
    """The application.

    Args:
        service: of the server.
        hosts: names that the Host header may have; empty: any.
    """
    # FastAPI's pages /docs and /redoc load scripts from other servers: /openapi.json is for tools.
    app = FastAPI(title="psf", version=psf.__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(router)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _wrong_option)
    app.add_middleware(Gate, service=service, hosts=hosts)
    return app


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page for people."""
    return FileResponse(PAGE / "index.html")


@router.get("/healthz")
async def healthz() -> Health:
    """Whether the server is ready."""
    return Health(status="ok")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Metrics in the text format of Prometheus."""
    return Response(_service(request).metrics.text(), media_type=METRICS_TYPE)


@router.get("/v1/model")
async def model(request: Request) -> ModelDescription:
    """Classes, colours, thresholds and limits."""
    return _service(request).model


@router.post(
    "/v1/segment",
    response_model=Segmentation,
    responses={200: _RESULT, **_REFUSALS, **_UPLOAD_REFUSALS},
    openapi_extra={"requestBody": _BODY},
)
async def segment(request: Request, options: Annotated[Options, Query()]) -> Response:
    """Segment an image: the body is its file, or a form with the file `image`."""
    service = _service(request)
    with service.admitted():
        data = await receive_image(request, service.limits)
        return _respond(await service.segment(data, options, partial(_disconnected, request)))


@router.get(
    "/v1/results/{result_id}",
    response_model=Segmentation,
    responses={200: _RESULT, **_REFUSALS, **_responses(s404="The result is not kept (any more)")},
)
async def result(request: Request, result_id: str, options: Annotated[Options, Query()]) -> Response:
    """A kept result, with other thresholds or in another format; the network does not run again."""
    return _respond(await _service(request).merge(result_id, options, partial(_disconnected, request)))


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _disconnected(request: Request) -> None:
    """Ends when the client closes the connection; the body has arrived before."""
    while (await request.receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)


def _respond(answer: Answer) -> Response:
    headers = {} if answer.result_id is None else {RESULT_HEADER: answer.result_id}
    return Response(answer.content, media_type=answer.media_type, headers=headers)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return refuse(error)


async def _wrong_option(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name, found, text = str(first["loc"][-1])[:80], str(first.get("input"))[:80], str(first["msg"])
    if first["type"] == "extra_forbidden":
        return refuse(Refusal(422, f"unknown option {name!r}: expected {', '.join(Options.model_fields)}"))
    return refuse(Refusal(422, f"{name}: {text[:1].lower()}{text[1:]}, found {found!r}"))
