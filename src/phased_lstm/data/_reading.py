"""What readers of files share: bytes, text and archives, with errors that name the file and the line."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..errors import DataError, missing_extra

if TYPE_CHECKING:
    import numpy as np

DAMAGED = "it is truncated or damaged: fetch it again"

_LEFTOVERS = {
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "desktop.ini",
}
# Those of 32 bits first, as one of 16 begins like them.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, "utf-8-sig"),
)  # fmt: skip
_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\0"


@contextmanager
def reading(place: object, advice: str = DAMAGED) -> Iterator[None]:
    """Turn what libraries raise on damaged files, which is nearly anything, into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        told = str(error) or type(error).__name__
        known = isinstance(error, OSError) and error.errno is not None
        raise DataError(f"{place} cannot be read: {told}" + ("" if known else f"; {advice}")) from error


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, or raise DataError."""
    with reading(path):
        return path.read_bytes()


def leftover(name: str | PurePosixPath | Path) -> bool:
    """Whether a path in a folder or archive of data is, or is in, what systems leave there: hidden, `__MACOSX`, ..."""
    parts = PurePosixPath(name).parts
    return any((part.startswith(".") and part != "..") or part.lower() in _LEFTOVERS for part in parts)


def files_in(folder: Path, suffix: str, *, below: bool = False) -> list[Path]:
    """Return the files of a folder that end in `suffix`, in any case, sorted; leftovers of systems are left out.

    Args:
        folder: where they are.
        suffix: in lower case, with its dot.
        below: whether those of subfolders are wanted too.
    """
    found = folder.rglob("*") if below else folder.glob("*")
    return sorted(
        path
        for path in found
        # A link that leads nowhere is to be an error of the reader, not a file less.
        if path.suffix.lower() == suffix and not leftover(path.relative_to(folder)) and not path.is_dir()
    )


def tar_files(path: Path, suffix: str) -> list[tuple[PurePosixPath, bytes]]:
    """Return name and bytes of the files of a .tar, .tar.gz or .tar.xz that end in `suffix`, leftovers left out."""
    content = read_bytes(path)
    found = []
    with reading(path):
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        elif content.startswith(_XZ):
            content = lzma.decompress(content)
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                file = tar.extractfile(member) if name.suffix.lower() == suffix and not leftover(name) else None
                if file is not None:
                    found.append((name, file.read()))
            # tarfile takes a damaged header for the end; behind the end there are only zeros.
            if content[tar.offset :].strip(b"\0"):
                raise tarfile.ReadError(f"bad header at byte {tar.offset}")
    return found


def zip_files(path: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield name and bytes of the wanted files of a zip archive, leftovers left out."""
    with reading(path), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = PurePosixPath(info.filename.replace("\\", "/"))
            if not info.is_dir() and not leftover(name) and wanted(name):
                yield name, archive.read(info)


def text_lines(content: bytes, place: object, *, comment: str = "") -> list[str]:
    """Split text into lines, whatever their ends; a byte order mark tells its encoding, else it is UTF-8.

    Args:
        content: of a file.
        place: names it in messages.
        comment: what comments begin with; they may be in any encoding.

    Raises:
        DataError: a line is in another encoding, or is no text.
    """
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-8"):
            text = content.decode(encoding, "surrogateescape")
        else:
            raise DataError(f"{place} begins as {encoding.upper()} and is not: {error}; save it as UTF-8") from error
    # str.splitlines would also split at characters that may stand within a line.
    lines = re.split("\r\n|\r|\n", text)
    if "\0" in text or not text.isascii():
        for number, line in enumerate(lines, start=1):
            odd = next((char for char in line if char == "\0" or "\udc80" <= char <= "\udcff"), None)
            if odd is not None and not (comment and line.lstrip().startswith(comment)):
                raise DataError(
                    f"{place}, line {number}: byte 0x{ord(odd) & 0xFF:02x} is not of UTF-8 text: save it as UTF-8"
                )
    return lines[:-1] if not lines[-1] else lines


def parse_number(entry: str) -> float:
    """Return a number that was written out; ValueError for anything else, 1_000 of Python's source code too."""
    if "_" in entry:
        raise ValueError(f"could not convert string to float: {entry!r}")
    return float(entry)


def read_npz(path: Path, advice: str = DAMAGED) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of an .npz file by name, in this machine's byte order.

    Raises:
        DataError: it cannot be read, or holds arrays of Python objects.
        ImportError: numpy is not installed.
    """
    try:
        import numpy as np
    except ImportError as error:
        raise missing_extra("train", "numpy") from error
    # numpy leaves a file open that it opened and could not read.
    with reading(path, advice), path.open("rb") as file, zipfile.ZipFile(file):
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in sorted(arrays.files)}
    return {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in found.items()}
