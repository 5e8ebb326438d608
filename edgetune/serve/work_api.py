"""What applications send: images, tensors, labels, samples."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgetune import __version__
from edgetune.errors import NoModelError, NotFoundError, UsageError
from edgetune.serve import kserve
from edgetune.serve.intake import Intake, Query, json_fields, whole_number
from edgetune.serve.service import Service
from edgetune.types import Manifest

TOP_K = 5
_TOP_K_MAX = 1000


class WorkApi:
    """Predictions in both dialects, and what people say about them."""

    def __init__(self, service: Service, intake: Intake) -> None:
        self._service, self._intake = service, intake

    async def predict(self, request: Request) -> Response:
        """POST /v1/predict?top_k=&record=, an encoded image."""
        query = Query(request, ("top_k", "record"))
        top_k = query.number("top_k", TOP_K, least=1, most=_TOP_K_MAX)
        record = query.flag("record") is not False
        async with self._intake.admit(request) as image:
            _check_image(request, image)
            answer = await self._intake.in_time(self._service.predict(image, top_k=top_k, record=record))
        return JSONResponse(
            {
                "prediction_id": answer.prediction_id,
                "model_version": answer.model_version,
                "label": answer.label,
                "rejected": answer.is_rejected,
                "top": [
                    {"class": name, "probability": probability}
                    | ({"mark": answer.marks[name]} if name in answer.marks else {})
                    for name, probability in answer.top
                ],
                "latency_ms": round(answer.latency_ms, 3),
            }
        )

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/edgetune[/versions/V]/infer, tensors."""
        version = self._version(request)
        async with self._intake.admit(request) as body:
            wanted = await self._intake.in_time(kserve.read_request(body, request.headers.get(kserve.HEADER_LENGTH)))
            answer = await self._intake.in_time(self._service.infer(version, wanted.images))
            content, headers = kserve.write_response(
                wanted, answer.manifest.version, answer.logits, answer.manifest.marks, answer.rejected
            )
        return Response(content, headers=headers)

    async def label_prediction(self, request: Request) -> Response:
        """POST /v1/predictions/{id}/label."""
        async with self._intake.body(request) as body:
            fields = json_fields(body, {"label": str}, required=("label",))
        return JSONResponse(await self._service.label_prediction(request.path_params["id"], fields["label"]))

    async def add_sample(self, request: Request) -> Response:
        """POST /v1/samples?label=&group=, an encoded image."""
        query = Query(request, ("label", "group"))
        async with self._intake.admit(request) as image:
            _check_image(request, image)
            stored = await self._service.add_sample(image, query.text("label"), query.text("group"))
        return JSONResponse(stored)

    async def server_metadata(self, _request: Request) -> Response:
        """GET /v2."""
        return JSONResponse(kserve.server_metadata(__version__))

    async def is_live(self, _request: Request) -> Response:
        """GET /v2/health/live."""
        return JSONResponse({"live": True})

    async def is_ready(self, _request: Request) -> Response:
        """GET /v2/health/ready."""
        is_ready, why = self._service.readiness()
        return JSONResponse({"ready": is_ready} | ({} if is_ready else {"why": why}), 200 if is_ready else 503)

    async def model_metadata(self, request: Request) -> Response:
        """GET /v2/models/edgetune[/versions/V]."""
        return JSONResponse(kserve.model_metadata(self._served(request)))

    async def is_model_ready(self, request: Request) -> Response:
        """GET /v2/models/edgetune[/versions/V]/ready."""
        manifest = self._served(request)
        is_ready, _why = self._service.readiness()
        return JSONResponse(
            {"name": f"{kserve.MODEL_NAME}:{manifest.version}", "ready": is_ready}, 200 if is_ready else 503
        )

    def _served(self, request: Request) -> Manifest:
        version, manifest = self._version(request), self._service.manifest()
        if manifest is None:
            raise NoModelError
        if version not in {None, manifest.version}:
            raise NotFoundError(f"version {version} is not served; {manifest.version} is")
        return manifest

    @staticmethod
    def _version(request: Request) -> int | None:
        name, version = request.path_params["name"], request.path_params.get("version")
        if name != kserve.MODEL_NAME:
            raise NotFoundError(f"there is no model {name!r}; the only one is {kserve.MODEL_NAME!r}")
        return None if version is None else whole_number(version, "version")


def _check_image(request: Request, image: bytes) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("multipart/") or kind == "application/json":
        raise UsageError(f"the body has to be the image itself, not {kind}", hint="curl --data-binary @image.jpg")
    if not image:
        raise UsageError("the body is empty; it has to be an image", hint="curl --data-binary @image.jpg")
