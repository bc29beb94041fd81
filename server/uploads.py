"""A multipart body: its fields, and its file on disk under a name of ours."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from server.errors import BadRequest

FIELD = 16 * 2**20
"""Bytes a text field may have: four reference clips as data URLs fit."""
PIECE = 2**20


@dataclass(frozen=True, slots=True)
class Upload:
    """A form with a recording."""

    path: Path
    """The file, without the name and the ending that the client gave it."""
    name: str
    """What the client called it; only to be shown."""
    size: int
    fields: tuple[tuple[str, str], ...]
    """Text fields in order."""


@asynccontextmanager
async def receive(request: Request, file_field: str = "file") -> AsyncGenerator[Upload, None]:
    """Read the body; the file is gone when the block ends. Raises BadRequest."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise BadRequest(
            f"the body is {kind.split(';')[0] or 'of no type'}; send multipart/form-data with the recording in a part"
            f" named {file_field}",
            param=file_field,
        )
    try:
        form = await request.form(max_files=1, max_fields=256, max_part_size=FIELD)
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise BadRequest(f"the multipart body is broken: {error.detail}") from None
    with tempfile.TemporaryDirectory(prefix="open-speech-") as folder:
        path = Path(folder) / "recording"
        try:
            file = form.get(file_field)
            if not isinstance(file, UploadFile):
                found = "is text without a filename" if isinstance(file, str) else "is missing"
                raise BadRequest(
                    f"the part {file_field} {found}; send the recording as a file in it",
                    param=file_field,
                )
            size = 0
            async with await anyio.open_file(path, "wb") as out:
                while piece := await file.read(PIECE):
                    size += len(piece)
                    await out.write(piece)
            fields = tuple(
                (name, value) for name, value in form.multi_items() if isinstance(value, str)
            )
            name = file.filename or "upload"
        finally:
            await form.close()
        if size == 0:
            raise BadRequest("the file is empty; send a recording", param=file_field)
        yield Upload(path, name, size, fields)
