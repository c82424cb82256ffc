"""Recordings that a command is given: audio files, folders, prepared corpora, lists of files, and
standard input. Each is read in blocks, so its length does not matter.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubert_pretrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hubert_pretrain.data.audio_stream import Waveform

STDIN = "-"
_COPIED_BYTES = 1 << 20
_PCM_BYTES = 32_000
"""Read from a microphone at a time: a second."""


@dataclass(frozen=True)
class Recording:
    """Something to listen to."""

    name: str
    """Its path, or its id in a prepared corpus."""
    stem: str
    """Path below a folder of results, without a suffix."""
    blocks: Callable[[], Iterator[Waveform]]
    """Opens it: waveform in blocks (S',)."""


@contextmanager
def recordings(inputs: list[str]) -> Iterator[Iterator[Recording]]:
    """Every recording of the command line, in order. - is standard input: audio of any container, a
    list of paths (one a line), or raw PCM (16 kHz, mono, signed 16-bit little-endian).

    Raises ConfigError for - beside other inputs, DataError for a folder without audio.
    """
    if STDIN not in inputs:
        yield _named(inputs)
        return
    if inputs != [STDIN]:
        raise ConfigError(
            f"input - is standard input and stands alone; leave out {len(inputs) - 1} other "
            "inputs, or the -"
        )
    from hubert_pretrain.data.container import HEAD_BYTES, container_of

    source = sys.stdin.buffer
    head = source.read(HEAD_BYTES)
    if _is_text(head):
        yield _named(_listed(head + source.read()))
    elif container_of(head) is None:
        yield iter([Recording("stdin", "stdin", partial(_pcm, head))])
    else:
        # Audio files are decoded by seeking in them, which a pipe does not allow.
        with tempfile.NamedTemporaryFile() as copy:
            while head:
                copy.write(head)
                head = source.read(_COPIED_BYTES)
            copy.flush()
            yield iter([Recording("stdin", "stdin", partial(_copied, copy.name))])


def _named(inputs: Iterable[str]) -> Iterator[Recording]:
    from hubert_pretrain.data import audio
    from hubert_pretrain.data.audio_files import USUAL, all_audio_below
    from hubert_pretrain.data.corpus import MANIFEST, Corpus

    for path in map(Path, inputs):
        if (path / MANIFEST).is_file():
            corpus = Corpus.open(path)
            for row in range(len(corpus.manifest)):
                id = corpus.manifest[row].id
                yield Recording(id, id, partial(_of_corpus, corpus, row))
        elif path.is_dir():
            files = all_audio_below(path)
            if not files:
                raise DataError(
                    f"{path}: no audio in it; expected files such as {USUAL}, or a prepared corpus"
                )
            for file in files:
                below = os.path.splitext(file.relative_to(path))[0]
                yield Recording(str(file), below, partial(audio.blocks, file))
        else:
            yield Recording(str(path), path.stem, partial(audio.blocks, path))


def _of_corpus(corpus: Any, row: int) -> Iterator[Waveform]:
    yield corpus.read(row)


def _copied(path: str) -> Iterator[Waveform]:
    from hubert_pretrain.data import audio
    from hubert_pretrain.data.storage import open_bytes

    return audio.blocks("stdin", open_bytes(path))


def _pcm(head: bytes) -> Iterator[Waveform]:
    """The samples while they arrive: first those of `head`."""
    import numpy as np

    pcm = head
    while pcm:
        whole = len(pcm) - len(pcm) % 2
        yield np.frombuffer(pcm[:whole], dtype="<i2").astype(np.float32) / np.float32(32768)
        received = sys.stdin.buffer.read1(_PCM_BYTES)  # type: ignore[union-attr]
        pcm = pcm[whole:] + received if received else b""


def _is_text(head: bytes) -> bool:
    """True for the beginning of a list of paths: UTF-8 without control characters."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # a character that goes on after the head
            return False
        text = head[: error.start].decode()
    return bool(text.strip()) and all(
        character.isprintable() or character in "\r\n\t" for character in text
    )


def _listed(content: bytes) -> list[str]:
    return [line.strip() for line in content.decode().splitlines() if line.strip()]
