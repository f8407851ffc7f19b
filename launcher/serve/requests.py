"""The images of a request: JSON with base64, a form with files, or the file of one image as the body."""

import json

from fastapi import HTTPException, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from launcher.serve.images import from_base64
from launcher.serve.options import Limits
from launcher.serve.schemas import ImagesRequest

# what OpenAPI says of the bodies that `images_of` reads
BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": ImagesRequest.model_json_schema()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "format": "binary"},
                        "description": "The files of one image or of several.",
                    }
                },
            }
        },
        "image/*": {"schema": {"type": "string", "format": "binary", "description": "One image."}},
    },
}


async def images_of(request: Request, limits: Limits) -> list[bytes]:
    """The files of a request's images, in order.

    Raises:
        HTTPException: 400 for a garbled body, 413 for too many images, 415 for another kind of body, 422 for
            JSON of another form.
        BadImageError: an image is no base64.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        images = _of_json(await request.body())
    elif kind == "multipart/form-data":
        images = await _of_form(request, limits)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        images = [await request.body()]
    else:
        raise HTTPException(
            415, "the body must be application/json, multipart/form-data or the file of an image (image/*)"
        )
    if len(images) > limits.images:
        raise HTTPException(413, f"{len(images)} images; at most {limits.images} are taken in one request")
    return images


def _of_json(body: bytes) -> list[bytes]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is no JSON: {error}") from error
    try:
        parsed = ImagesRequest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise HTTPException(422, f"{where}: {first['msg']}") from error
    return [from_base64(number, text) for number, text in enumerate(parsed.images)]


async def _of_form(request: Request, limits: Limits) -> list[bytes]:
    async with request.form(max_files=limits.images + 1, max_fields=16) as form:
        files = form.getlist("file")
        if not files or not all(isinstance(file, UploadFile) for file in files):
            raise HTTPException(422, "the form must have its images as files in the field `file`")
        return [await file.read() for file in files if isinstance(file, UploadFile)]
