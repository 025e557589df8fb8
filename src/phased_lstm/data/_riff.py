"""The chunks of a WAV file: what form its samples have, and their bytes.

Python's `wave` reads WAVE_FORMAT_EXTENSIBLE from 3.12 on only, and neither RF64 nor what was written into a pipe. See
Microsoft's "Multiple channel audio data and WAVE files", and EBU Tech 3306 for RF64.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import DataError

_PCM, _EXTENSIBLE = 0x0001, 0xFFFE
_FORMATS = {
    0x0002: "ADPCM", 0x0003: "floating-point numbers", 0x0006: "A-law", 0x0007: "mu-law", 0x0011: "ADPCM",
    0x0031: "GSM 6.10", 0x0050: "MPEG audio", 0x0055: "MP3", 0x00FF: "AAC",
}  # fmt: skip
# A GUID of an extensible header is a format's number, 32 bits, and these bytes.
_GUID_TAIL = bytes.fromhex("00001000800000aa00389b71")
_OTHER_FILES = {
    b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3": "MP3", b"FORM": "AIFF", b"RIFX": "big-endian WAV", b"riff": "Wave64",
    b"caff": "CAF", b".snd": "AU",
}  # fmt: skip
# Sizes that writers put where they do not know it and cannot come back: ffmpeg's, sox's and arecord's.
_UNKNOWN = 0xFFFFFFFF
_STREAMED = {_UNKNOWN, 0x7FFFF000, 0x80000000}
_CONVERT = "convert it, for instance with: ffmpeg -i IN -c:a pcm_s16le OUT.wav"


class Sound(NamedTuple):
    """Interleaved integer samples, of `width` bytes each, the lowest first."""

    channels: int
    rate: int
    width: int
    data: memoryview


def parse(content: bytes, place: str) -> Sound:
    """Find the samples of a WAV file.

    Raises:
        DataError: it is none, is truncated, or has other samples than integers of at most 32 bits.
    """
    if content[:4] not in (b"RIFF", b"RF64", b"BW64") or content[8:12] != b"WAVE":
        other = next((name for mark, name in _OTHER_FILES.items() if content.startswith(mark)), "")
        found = f"it is {other}" if other else f"it begins with {content[:12]!r}"
        raise DataError(f"{place} cannot be read as WAV: {found}, expected RIFF and WAVE; {_CONVERT}")
    form = None
    whole_size: int | None = None
    for name, size, start in _chunks(content):
        if name == b"ds64" and size >= 16:
            whole_size = int.from_bytes(content[start + 8 : start + 16], "little")
        elif name == b"fmt ":
            form = _format(content[start : start + size], place)
        elif name == b"data":
            if form is None:
                raise DataError(f"{place} cannot be read as WAV: its samples come before their format; {_CONVERT}")
            channels, rate, width = form
            promised = whole_size if size == _UNKNOWN and whole_size is not None else size
            promised = _expected(promised, content, start)
            # A last frame that is cut short, as the header itself says, is none.
            promised -= promised % (channels * width)
            data = memoryview(content)[start : start + promised]
            if len(data) < promised:
                raise DataError(
                    f"{place} holds {len(data)} bytes of sound, its header promises {promised}: truncated; "
                    f"fetch it again"
                )
            if not promised:
                raise DataError(f"{place} holds no sound")
            return Sound(channels, rate, width, data)
    raise DataError(f"{place} cannot be read as WAV: it ends before its samples: truncated; fetch it again")


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, size and begin of each chunk; chunks begin at even places."""
    place = 12
    while place + 8 <= len(content):
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        yield content[place : place + 4], size, place + 8
        place += 8 + size + size % 2


def _expected(promised: int, content: bytes, start: int) -> int:
    """How many bytes of samples there should be; all that follow where the writer could not come back to say."""
    there = len(content) - start
    whole = int.from_bytes(content[4:8], "little")
    ends_here = whole in (0, _UNKNOWN) or whole + 8 <= start
    if (promised in _STREAMED and promised > there) or (promised == 0 and ends_here):
        return there
    return promised


def _format(body: bytes, place: str) -> tuple[int, int, int]:
    """Channels, rate and bytes a sample."""
    if len(body) < 16:
        raise DataError(f"{place} cannot be read as WAV: its format has {len(body)} bytes, expected 16: truncated")
    kind, channels, rate, _, block, bits = struct.unpack("<HHIIHH", body[:16])
    if kind == _EXTENSIBLE:
        if len(body) < 40:
            raise DataError(f"{place} cannot be read as WAV: its format has {len(body)} bytes, expected 40: truncated")
        kind = int.from_bytes(body[24:28], "little") if body[28:40] == _GUID_TAIL else -1
    if kind != _PCM:
        found = _FORMATS.get(kind, "an unknown format" if kind < 0 else f"format 0x{kind:04x}")
        raise DataError(f"{place} cannot be read as WAV with integer samples: its samples are {found}; {_CONVERT}")
    width = (bits + 7) // 8
    if not channels or not rate or width not in (1, 2, 3, 4) or (block and block != channels * width):
        raise DataError(
            f"{place} cannot be read as WAV: its header tells {channels} channels at {rate} Hz of {bits} bits, in "
            f"blocks of {block} bytes, expected 8, 16, 24 or 32 bits and no zeros; {_CONVERT}"
        )
    return channels, rate, width
