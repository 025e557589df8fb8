"""Headers of WAV files, byte by byte: what recorders, converters and pipes write."""

from __future__ import annotations

import io
import struct
import wave
from pathlib import Path

import pytest
import torch

from phased_lstm.data.audio import read_wav
from phased_lstm.errors import DataError

GUID = bytes.fromhex("00001000800000aa00389b71")
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
# Six bytes: two frames of three channels of 8 bits, one frame of two channels of 24.
DATA = bytes([0, 255, 128, 64, 1, 192])


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def form(channels: int = 2, bits: int = 24, rate: int = 8000, kind: int = PCM, block: int | None = None) -> bytes:
    size = channels * ((bits + 7) // 8)
    return struct.pack("<HHIIHH", kind, channels, rate, rate * size, size if block is None else block, bits)


def extended(kind: int = PCM, tail: bytes = GUID, bits: int = 24) -> bytes:
    return form(bits=bits, kind=EXTENSIBLE) + struct.pack("<HHII", 22, bits, 3, kind) + tail


def riff(*chunks: bytes, name: bytes = b"RIFF", size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return name + struct.pack("<I", len(body) if size is None else size) + body


def frames(content: bytes) -> list[list[float]]:
    samples, rate = read_wav(io.BytesIO(content), "a.wav")
    assert rate == 8000
    return (samples * 2**23).tolist()


PLAIN = riff(chunk(b"fmt ", form()), chunk(b"data", DATA))


def by_wave(content: bytes) -> list[list[float]]:
    """What Python's own module reads of a file of 24 bits, as integers."""
    with wave.open(io.BytesIO(content)) as sound:
        channels, data = sound.getnchannels(), sound.readframes(sound.getnframes())
    numbers = [float(int.from_bytes(data[i : i + 3], "little", signed=True)) for i in range(0, len(data), 3)]
    return [numbers[i : i + channels] for i in range(0, len(numbers), channels)]


@pytest.mark.parametrize(
    "content",
    [
        riff(chunk(b"fmt ", extended()), chunk(b"data", DATA)),
        riff(chunk(b"fmt ", form() + b"\0\0"), chunk(b"data", DATA)),
        riff(chunk(b"LIST", b"odd"), chunk(b"fmt ", form()), chunk(b"fact", b"1234"), chunk(b"data", DATA)),
        riff(chunk(b"fmt ", form()), chunk(b"data", DATA), chunk(b"LIST", b"INFO"), chunk(b"id3 ", b"tag")),
        riff(chunk(b"fmt ", form()), chunk(b"data", DATA)) + b"behind the end",
        riff(chunk(b"fmt ", form()), chunk(b"data", DATA), size=0),
        riff(chunk(b"fmt ", form(block=0)), chunk(b"data", DATA)),
        # A frame that is cut short, as the chunk's own size says.
        riff(chunk(b"fmt ", form()), chunk(b"data", DATA + b"\1\2")),
        riff(chunk(b"fmt ", form()), chunk(b"data", DATA, len(DATA) + 2)),
    ],
    ids=[
        "extensible",
        "18 bytes",
        "chunks before",
        "chunks behind",
        "rest",
        "no size",
        "no block",
        "part of a frame",
        "promised",
    ],
)
def test_headers_that_mean_the_same(content: bytes) -> None:
    assert frames(content) == by_wave(PLAIN)


@pytest.mark.parametrize("name", [b"RF64", b"BW64"])
def test_sizes_of_64_bits(name: bytes) -> None:
    sizes = chunk(b"ds64", struct.pack("<QQQI", 0, len(DATA), 1, 0))
    content = riff(sizes, chunk(b"fmt ", form()), chunk(b"data", DATA, 0xFFFFFFFF), chunk(b"LIST", b"INFO"), name=name)
    assert frames(content) == by_wave(PLAIN)
    sizes = chunk(b"ds64", struct.pack("<QQQI", 0, 1 << 40, 1, 0))
    with pytest.raises(DataError, match="promises 1099511627772: truncated"):
        frames(riff(sizes, chunk(b"fmt ", form()), chunk(b"data", DATA, 0xFFFFFFFF), name=name))


@pytest.mark.parametrize(("whole", "size"), [(0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000), (36, 0), (0, 0)])
def test_what_was_written_into_a_pipe_is_read_to_its_end(whole: int, size: int) -> None:
    start = chunk(b"fmt ", form())
    assert frames(riff(start, chunk(b"data", DATA, size), size=whole)) == by_wave(PLAIN)
    with pytest.raises(DataError, match=r"a\.wav holds no sound"):
        frames(riff(start, chunk(b"data", b"", size), size=whole))


def test_no_sound_is_not_the_chunk_behind() -> None:
    with pytest.raises(DataError, match=r"a\.wav holds no sound"):
        frames(riff(chunk(b"fmt ", form()), chunk(b"data", b""), chunk(b"LIST", b"INFOxx")))


def test_as_many_channels_as_there_are_samples() -> None:
    samples, _ = read_wav(io.BytesIO(riff(chunk(b"fmt ", form(6, 8)), chunk(b"data", DATA))))
    assert torch.equal(samples, (torch.tensor([list(DATA)]) - 128.0) / 128)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            riff(chunk(b"fmt ", form(bits=32, kind=FLOAT)), chunk(b"data", DATA)),
            "are floating-point numbers; conv",
        ),
        (riff(chunk(b"fmt ", extended(FLOAT)), chunk(b"data", DATA)), "are floating-point numbers"),
        (riff(chunk(b"fmt ", form(bits=8, kind=6)), chunk(b"data", DATA)), "are A-law"),
        (riff(chunk(b"fmt ", form(bits=8, kind=7)), chunk(b"data", DATA)), "are mu-law"),
        (riff(chunk(b"fmt ", form(bits=4, kind=0x7777)), chunk(b"data", DATA)), "are format 0x7777"),
        (riff(chunk(b"fmt ", extended(tail=GUID[::-1])), chunk(b"data", DATA)), "are an unknown format"),
        (riff(chunk(b"fmt ", extended()[:30]), chunk(b"data", DATA)), "format has 30 bytes, expected 40"),
        (riff(chunk(b"fmt ", form()[:14]), chunk(b"data", DATA)), "format has 14 bytes, expected 16"),
        (riff(chunk(b"fmt ", form(rate=0)), chunk(b"data", DATA)), "2 channels at 0 Hz"),
        (riff(chunk(b"fmt ", form(channels=0)), chunk(b"data", DATA)), "0 channels at 8000 Hz"),
        (riff(chunk(b"fmt ", form(bits=0)), chunk(b"data", DATA)), "of 0 bits"),
        (riff(chunk(b"fmt ", form(bits=64)), chunk(b"data", DATA)), "of 64 bits"),
        # 24 bits in 32: which of the 32 is not said.
        (riff(chunk(b"fmt ", form(block=8)), chunk(b"data", DATA)), "24 bits, in blocks of 8 bytes"),
        (riff(chunk(b"fmt ", form())), "it ends before its samples"),
        (riff(chunk(b"data", DATA)), "its samples come before their format"),
        (PLAIN[:-2], "holds 4 bytes of sound, its header promises 6: truncated"),
        (PLAIN[:40], "it ends before its samples"),
        (b"", "it begins with b'', expected RIFF and WAVE"),
        (b"fLaC" + PLAIN, "it is FLAC"),
        (riff(chunk(b"fmt ", form()), name=b"RIFX"), "it is big-endian WAV"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.wav .*{message}"):
        read_wav(path)
