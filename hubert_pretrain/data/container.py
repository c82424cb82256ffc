"""Tells audio files from raw PCM by their first bytes, where a stream has no name."""

from __future__ import annotations

HEAD_BYTES = 4096
"""First bytes that are enough: two frames of any MP3 file."""

_MAGIC = {
    b"RIFF": "WAV",
    b"RF64": "WAV",
    b"riff": "W64",
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"ID3": "MP3",
    b"FORM": "AIFF",
    b".snd": "AU",
    b"caff": "CAF",
    b"NIST_1A": "SPHERE",
    b"\x1aE\xdf\xa3": "WebM",
}

# MPEG audio: 8 kbit/s times these, by version (1, or 2 and 2.5), layer, and bit rate index 1 to 14;
# and the Hz of version 1.
_BIT_RATES = {
    (1, 2): (4, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48),
    (1, 3): (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40),
    (2, 2): (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20),
    (2, 3): (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20),
}
_RATES = (44_100, 48_000, 32_000)


def container_of(head: bytes) -> str | None:
    """The kind of audio file that begins with these bytes (HEAD_BYTES of them, or all); None for
    anything else, such as PCM.
    """
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        return "MP4"
    # Two samples of PCM may look like the header of an MP3 frame, but not also those one frame on.
    length = _mpeg_frame_bytes(head)
    following = head[length : length + 4]
    if (
        length
        and _mpeg_frame_bytes(following)
        and (head[1], head[2] & 12)
        == (
            following[1],
            following[2] & 12,
        )
    ):
        return "MP3"
    return None


def _mpeg_frame_bytes(header: bytes) -> int:
    """Length of a frame of MPEG audio, layer II or III, from its header; 0 for anything else."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return 0
    version = header[1] >> 3 & 3  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    layer = 4 - (header[1] >> 1 & 3)
    bit_rate = header[2] >> 4
    rate = header[2] >> 2 & 3
    if version == 1 or layer not in (2, 3) or not 1 <= bit_rate <= 14 or rate == 3:
        return 0
    bytes_per_second = 1000 * _BIT_RATES[1 if version == 3 else 2, layer][bit_rate - 1]
    hertz = _RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    samples = 1152 if version == 3 or layer == 2 else 576
    padding = header[2] >> 1 & 1
    return samples * bytes_per_second // hertz + padding
