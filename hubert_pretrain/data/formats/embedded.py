"""Audio that a table holds inside itself, written once to files, and audio cut out of longer files."""

from __future__ import annotations

import io
import os
from pathlib import Path

from hubert_pretrain.data import audio
from hubert_pretrain.data.corpus import Claim
from hubert_pretrain.data.formats.measure import header_of, stored_bytes
from hubert_pretrain.data.formats.text import safe_name
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE

_MAGIC = ((b"RIFF", ".wav"), (b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3"), (b"\xff\xfb", ".mp3"), (b"\xff\xf3", ".mp3"))


def suffix_of(content: bytes, name: str = "") -> str:
    """The suffix of an audio file by its first bytes, else by the name it had; ".audio" when neither tells."""
    found = next((suffix for magic, suffix in _MAGIC if content.startswith(magic)), None)
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in audio.SUFFIXES and found in (None, ".ogg") else found or ".audio"


def store(folder: Path, id: str, content: bytes, name: str = "") -> Path:
    """Writes an audio file under a safe name made of the id, once: one that is there with this content stays."""
    path = folder / f"{safe_name(id)}{suffix_of(content, name)}"
    if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(content)
        os.replace(temporary, path)
    return path


def store_claim(folder: Path, claim: Claim) -> Path:
    """Writes the audio of an utterance: byte for byte when it is a whole file or member of a shard; a part of one as FLAC, 16 kHz, 16 bits.

    Raises DataError for a URL, and for a part that its file does not hold.
    """
    import soundfile

    if "://" in str(claim.path):
        raise DataError(f"{claim.path}: is a URL; copy the audio to a disk, so that it can be written to {folder}")
    header = header_of(claim)
    if header.is_whole(claim):
        return store(folder, claim.id, stored_bytes(claim), str(claim.path) if claim.offset < 0 else "")
    if claim.offset >= 0:
        raise DataError(f"utterance {claim.id!r}: is a part of a member of the shard {claim.path}; write the whole members to files first")
    wanted = header.length_of(claim)
    waveform = audio.read(claim.path, claim.start, wanted)
    if len(waveform) != wanted:
        raise DataError(
            f"{claim.path}: has {len(waveform)} samples at {claim.start}, utterance {claim.id!r} needs {wanted}; mend the manifest"
        )
    packed = io.BytesIO()
    soundfile.write(packed, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return store(folder, claim.id, packed.getvalue())
