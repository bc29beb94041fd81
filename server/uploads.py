"""A multipart body: its fields, and its file on disk under a name of ours."""

from __future__ import annotations

import errno
import logging
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from server.context import context
from server.errors import BadRequest
from server.room import Share
from streaming.errors import OpenSpeechError, Overloaded, StorageFull

log = logging.getLogger(__name__)

TEXT = 16 * 2**20
"""Bytes that the text fields may have in all: four reference clips as data URLs fit."""


JSON = 64 * 2**10
"""Bytes that a body of JSON may have; it is held in memory."""


async def short(request: Request) -> bytes:
    """A body that is to be JSON. Raises HTTPException 413."""
    found = b""
    async for piece in request.stream():
        found += piece
        if len(found) > JSON:
            raise HTTPException(
                413,
                f"the body has more than {JSON} bytes, the most that JSON may have here; send less",
            )
    return found


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
    """Read the body; the file is gone when the block ends. Raises BadRequest, StorageFull, and Overloaded:
    before it reads a byte where the recording could not be taken, or as soon as its size is too much."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind.lower() != "multipart/form-data":
        raise BadRequest(
            f"the body is {kind or 'of no type'}; send multipart/form-data with the recording in a part named"
            f" {file_field}",
            param=file_field,
        )
    here = context(request)
    if (fault := here.engine.refusal()) is not None:
        raise fault
    with here.uploads.share() as share, _nameless() as path:
        told = request.headers.get("content-length", "")
        share.expect(int(told) if told.isdecimal() else 0)
        try:
            form = await _Parser(request, path, share).parse()
        except MultiPartException as error:
            raise BadRequest(f"the multipart body is broken: {error.message}") from None
        except OSError as error:
            raise _not_stored(error) from error
        await form.close()
        file = form.get(file_field)
        if not isinstance(file, UploadFile):
            found = "is text without a filename" if isinstance(file, str) else "is missing"
            raise BadRequest(
                f"the part {file_field} {found}; send the recording as a file in it",
                param=file_field,
            )
        size = path.stat().st_size
        if size == 0:
            raise BadRequest("the file is empty; send a recording", param=file_field)
        fields = tuple(
            (name, value) for name, value in form.multi_items() if isinstance(value, str)
        )
        yield Upload(path, file.filename or "upload", size, fields)


@contextmanager
def _nameless() -> Iterator[Path]:
    """A file in the temporary folder without a name there, so that not even a server that is killed leaves it behind;
    the path is good in this process only. Raises StorageFull, Overloaded."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile())
            path = Path(f"/proc/self/fd/{file.fileno()}")
            if not path.exists():  # another system, where the name has to stay
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="open-speech-"))
                path = Path(folder) / "recording"
        except OSError as error:
            raise _not_stored(error) from error
        yield path


def _not_stored(error: OSError) -> OpenSpeechError:
    """What it means that the temporary folder does not take an upload."""
    log.warning("an upload could not be stored in %s: %s", tempfile.tempdir or "TMPDIR", error)
    # ENOENT: there is no temporary folder that could be written to.
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOENT):
        return StorageFull(
            "the server has no room for the upload; send a shorter or more compressed recording, or ask its operator"
            " for a larger TMPDIR"
        )
    return Overloaded("the server cannot take the upload now; try again in a moment", retry_after=5)


class _Parser(MultiPartParser):
    """Starlette's, with the file where it is wanted, a bound for all text together, and no codec but UTF-8."""

    _charset = property(lambda self: "utf-8", lambda self, value: None)

    def __init__(self, request: Request, path: Path, share: Share) -> None:
        super().__init__(
            request.headers, request.stream(), max_files=1, max_fields=256, max_part_size=TEXT
        )
        self._path = path
        self._share = share
        self._text = 0
        self._size = 0

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        file = self._current_part.file
        if file is not None:
            file.file.close()
            file.file = self._path.open("wb")
            self._files_to_close_on_error.append(file.file)  # type: ignore[arg-type] # only closed

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        self._share.grow(self._size)
        if self._current_part.file is None:
            self._text += end - start
            if self._text > TEXT:
                raise MultiPartException(
                    f"its text fields have more than {TEXT >> 20} MiB in all; send less"
                )
        super().on_part_data(data, start, end)
