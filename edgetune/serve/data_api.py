"""The buffer: what is in it, and what an operator does to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgetune.errors import UsageError
from edgetune.serve.intake import Intake, Query, json_fields
from edgetune.serve.service import Service
from edgetune.types import Split

_LIST_MAX = 10_000
_NUMBER_MAX = 2**53
_NEXT_MAX = 100


class DataApi:
    """Samples and classes."""

    def __init__(self, service: Service, intake: Intake) -> None:
        self._service, self._intake = service, intake

    async def samples(self, request: Request) -> Response:
        """GET /v1/data/samples?label=&split=&labelled=&limit=&offset=."""
        query = Query(request, ("label", "split", "labelled", "limit", "offset"))
        split, splits = query.text("split"), [known.value for known in Split]
        if split is not None and split not in splits:
            raise UsageError(f"split is {split!r}; it has to be one of {', '.join(splits)}")
        rows = await self._service.data_samples(
            label=query.text("label"),
            split=split,
            labelled=query.flag("labelled"),
            limit=query.number("limit", 100, least=1, most=_LIST_MAX),
            offset=query.number("offset", 0),
        )
        return JSONResponse(rows)

    async def next(self, request: Request) -> Response:
        """GET /v1/data/next?count=."""
        count = Query(request, ("count",)).number("count", 20, least=1, most=_NEXT_MAX)
        return JSONResponse(await self._service.data_next(count=count))

    async def classes(self, _request: Request) -> Response:
        """GET /v1/data/classes."""
        return JSONResponse(await self._service.data_classes())

    async def accept(self, request: Request) -> Response:
        """POST /v1/data/classes/{name}/accept."""
        return JSONResponse(await self._service.data_accept(request.path_params["name"]))

    async def refuse(self, request: Request) -> Response:
        """POST /v1/data/classes/{name}/refuse."""
        return JSONResponse(await self._service.data_refuse(request.path_params["name"]))

    async def image(self, request: Request) -> Response:
        """GET /v1/data/samples/{sample}/image; a sample's number or digest."""
        image = await self._service.data_image(request.path_params["sample"])
        return Response(image, media_type="application/octet-stream")

    async def label(self, request: Request) -> Response:
        """POST /v1/data/samples/{sample}/label; a sample's number or digest."""
        fields = await self._fields(request, {"label": str}, required=("label",))
        return JSONResponse(await self._service.data_label(request.path_params["sample"], fields["label"]))

    async def purge(self, request: Request) -> Response:
        """POST /v1/data/purge: exactly one of a sample, a digest, a class, or everything."""
        kinds: dict[str, type] = {"sample_id": int, "digest": str, "label": str, "everything": bool}
        fields = await self._fields(request, kinds)
        chosen = [name for name, value in fields.items() if value is not False]
        if len(chosen) != 1:
            raise UsageError(f"say exactly one of {', '.join(kinds)}")
        if not 0 <= fields.get("sample_id", 0) <= _NUMBER_MAX:
            raise UsageError(f"sample_id is {fields['sample_id']}; it has to lie between 0 and {_NUMBER_MAX}")
        return JSONResponse(
            await self._service.data_purge(
                sample_id=fields.get("sample_id"),
                digest=fields.get("digest"),
                label=fields.get("label"),
                everything=fields.get("everything", False),
            )
        )

    async def export(self, request: Request) -> Response:
        """POST /v1/data/export, a directory of this board."""
        fields = await self._fields(request, {"directory": str}, required=("directory",))
        return JSONResponse(await self._service.data_export(_absolute(fields["directory"])))

    async def backup(self, request: Request) -> Response:
        """POST /v1/data/backup, a file of this board."""
        fields = await self._fields(request, {"path": str}, required=("path",))
        return JSONResponse(await self._service.data_backup(_absolute(fields["path"])))

    async def _fields(self, request: Request, kinds: dict[str, type], required: tuple[str, ...] = ()) -> dict[str, Any]:
        async with self._intake.body(request) as body:
            return json_fields(body, kinds, required)


def _absolute(path: str) -> str:
    """The daemon's working directory is not the client's, so a relative path means nothing here."""
    if not Path(path).is_absolute() or "\0" in path:
        raise UsageError(f"{path!r} is not an absolute path")
    return path
