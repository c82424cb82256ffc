"""Facts about the bytes of an audio file that libsndfile does not state: sizes that were never
filled in, joined streams, and the length that a header promises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hubert_pretrain.data.storage import ByteRange
from hubert_pretrain.errors import DataError

STREAMED = 0x7FFFF000
"""A size in a header of 0, or of this and more, means that the writer did not know it, because it
wrote into a pipe or was killed.
"""
_UNKNOWN = b"\xff\xff\xff\xff"
_MANY = 4096
"""Bytes that may follow the audio of a file without being a chunk."""

_OGG_FIRST_PAGE = re.compile(rb"OggS\x00[\x02\x06]\x00{8}.{4}\x00{4}", re.DOTALL)
"""The first page of a logical stream: flag 0x02, position 0, page number 0 (RFC 3533 section 6)."""
_OGG_HEADER = 27
_SEARCHED = 1 << 22
_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_SHORT = re.compile(
    r"^ *(?:SSND|BODY|data|Data Size|riff|Riff size) *:? (\d+) \(should be (\d+)\)", re.MULTILINE
)
"""Line in libsndfile's log of a file whose stated size is not the real one."""


# -- WAV


@dataclass(frozen=True, slots=True)
class WavData:
    """The `data` chunk of a RIFF or RF64 file."""

    start: int
    """First byte of the samples."""
    size: int
    """Bytes as stated; -1: never filled in."""
    size_at: int
    """Position of the stated size."""
    size_bytes: int


def wav_data(content: ByteRange) -> WavData | None:
    """The samples of a WAV file; None for another file and without a `data` chunk."""
    form = content.read(0, 12)
    if form[:4] not in (b"RIFF", b"RF64") or form[8:] != b"WAVE":
        return None
    position = 12
    wide_size_at = 0
    while len(header := content.read(position, 8)) == 8:
        size = int.from_bytes(header[4:], "little")
        position += 8
        if header[:4] == b"ds64":
            wide_size_at = position + 8
        if header[:4] == b"data":
            size_at = position - 4
            size_bytes = 4
            if wide_size_at and size >= STREAMED:
                size_at = wide_size_at
                size_bytes = 8
                size = int.from_bytes(content.read(size_at, 8), "little")
            is_known = size > 0 and (size < STREAMED or size_bytes == 8)
            return WavData(position, size if is_known else -1, size_at, size_bytes)
        position += size + size % 2
    return None


def with_sizes(content: ByteRange) -> ByteRange:
    """The file, with the size of its samples filled in where a WAV file leaves it at 0."""
    data = wav_data(content)
    if data is None or data.size >= 0 or content.size <= data.start:
        return content
    size = content.size - data.start
    stated = size.to_bytes(8, "little") if data.size_bytes == 8 else _UNKNOWN
    return content.patched(data.size_at, stated)


def _not_covered(content: ByteRange) -> str:
    """The reason to refuse a WAV file whose stated size covers a part of its samples; "" for any
    other file.
    """
    data = wav_data(content)
    if data is None or data.size < 0:
        return ""
    end = data.start + data.size + data.size % 2
    follows = content.read(end, _MANY)
    if len(follows) < _MANY or not follows.strip(b"\0"):
        return ""
    size = int.from_bytes(follows[4:8], "little")
    is_chunk = follows[:4].isascii() and follows[:4].decode().isprintable()
    if is_chunk and size <= content.size - end and follows[:4] not in (b"RIFF", b"RF64"):
        return ""
    return (
        f"its header covers {data.size} of {content.size - data.start} bytes, and no chunk follows;"
        " repair it (ffmpeg -ignore_length 1 -i FILE NEW.wav), or split joined recordings"
    )


# -- joined streams


def ogg_streams(content: ByteRange) -> list[ByteRange]:
    """The Ogg streams that were joined one behind the other (RFC 3533: chained), usually one."""
    data = content.read(0, content.size)
    starts: list[int] = []
    header_end = -1
    for page in _OGG_FIRST_PAGE.finditer(data):
        # Streams side by side begin with one first page right behind the other.
        if page.start() != header_end:
            starts.append(page.start())
        header_end = _page_end(data, page.start())
    if len(starts) < 2:
        return [content]
    ends = [*starts[1:], content.size]
    return [
        content.part(start, end - start) for start, end in zip([0, *starts[1:]], ends, strict=True)
    ]


def _page_end(data: bytes, start: int) -> int:
    sizes = data[start + _OGG_HEADER : start + _OGG_HEADER + data[start + _OGG_HEADER - 1]]
    return start + _OGG_HEADER + len(sizes) + sum(sizes)


def _has_ogg_end(content: ByteRange) -> bool:
    """True when an Ogg file ends with a whole page that is marked as the last (flag 0x04)."""
    longest_page = 65_307
    tail = content.read(max(0, content.size - longest_page), longest_page)
    start = tail.rfind(b"OggS")
    page = tail[start:] if start >= 0 else b""
    return len(page) >= _OGG_HEADER and bool(page[5] & 4) and len(page) >= _page_end(page, 0)


def _flac_streams(content: ByteRange) -> int:
    """Number of FLAC streams that were joined to one file."""
    overlap = len(b"fLaC") + 3
    return sum(
        len(_FLAC_START.findall(content.read(start, _SEARCHED + overlap)))
        for start in range(0, content.size, _SEARCHED)
    )


# -- MP3


@dataclass(frozen=True, slots=True)
class MpegStream:
    """Beginning of an MPEG audio stream."""

    start: int
    """First byte of its first frame, after ID3 tags."""
    rate_code: int
    """Version and sample rate, as they stand in the header of every frame."""
    states_length: bool
    """Its first frame is a Xing or Info header with the number of frames."""
    end: int
    """First byte after the stream by that header; -1: not stated."""


def mpeg_stream(data: bytes, start: int = 0) -> MpegStream | None:
    """The MPEG audio stream that begins at `start`; None when there is none."""
    while data[start : start + 3] == b"ID3" and len(data) > start + 10:
        size = 0
        for seven_bits in data[start + 6 : start + 10]:
            size = size << 7 | seven_bits & 127
        start += 10 + size
    header = data[start : start + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version = header[1] >> 3 & 3
    layer = header[1] >> 1 & 3
    rate = header[2] >> 2 & 3
    if version == 1 or layer == 0 or header[2] >> 4 == 15 or rate == 3:
        return None
    is_mono = header[3] >> 6 == 3
    side_bytes = {(3, False): 32, (3, True): 17}.get((version, is_mono), 9 if is_mono else 17)
    first = start + 4 + side_bytes
    flags = int.from_bytes(data[first + 4 : first + 8], "big")
    states_length = data[first : first + 4] in (b"Xing", b"Info") and bool(flags & 1)
    num_bytes = int.from_bytes(data[first + 12 : first + 16], "big")
    end = start + num_bytes if states_length and flags & 2 and num_bytes else -1
    return MpegStream(start, version << 2 | rate, states_length, end)


def is_joined_mpeg(path: str, data: bytes, stream: MpegStream) -> bool:
    """True when a stream that states its end is followed by more than tags. Raises DataError for a
    second stream with another sample rate.
    """
    if stream.end < 0 or len(data) - stream.end < _MANY:
        return False
    second = mpeg_stream(data, stream.end)
    if second is not None and second.rate_code != stream.rate_code:
        raise DataError(f"{path}: joins MP3 streams of several sample rates; split or re-encode it")
    after = data[stream.end : stream.end + 256]
    after = after[128:] if after.startswith(b"TAG") else after
    return not after.startswith((b"APETAGEX", b"LYRICSBEGIN"))


# -- what a header promises


def sphere_samples(content: ByteRange) -> int | None:
    """Number of samples that the header of a NIST SPHERE file states."""
    found = re.search(rb"^sample_count -i (\d+)", content.read(0, 1024), re.MULTILINE)
    return int(found[1]) if found else None


def missing_bytes(kind: str, log: str) -> int:
    """Bytes by which a file is shorter than its header says; 0 when it fits, or when the header has
    no size.

    Args:
        kind: libsndfile's name of the format.
        log: what libsndfile noted when it opened the file.
    """
    most = 1 << 62 if kind in ("RF64", "W64") else STREAMED
    sizes = [(int(stated), int(found)) for stated, found in _SHORT.findall(log)]
    return max((stated - found for stated, found in sizes if stated < most), default=0)


def unread_part(kind: str, content: ByteRange) -> str:
    """The reason to refuse a file that holds more audio than can be decoded; "" for a good one."""
    if kind in ("WAV", "WAVEX", "RF64"):
        return _not_covered(content)
    if kind == "FLAC" and (streams := _flac_streams(content)) > 1:
        return f"holds {streams} joined streams, only the first can be decoded; split it"
    return ""


def has_end(kind: str, content: ByteRange) -> bool:
    """False for an Ogg stream without its last page."""
    return kind != "OGG" or _has_ogg_end(content)
