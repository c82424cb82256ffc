"""Tar shards in WebDataset's form, on disk or behind URLs: per key one audio member (`x.flac` or
`x.audio.flac`), and optionally `x.txt`, `x.cls` and `x.json`. Other members are counted, not read.

Stage `prepare` reads every shard once and records the byte range of each utterance, and the shard's
size and sha256. Training then reads utterances in any order: the batch of a step does not depend on
the number of shards, workers or devices.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hubert_pretrain.corpora.common import check_choice
from hubert_pretrain.data.audio_files import PassedOver
from hubert_pretrain.data.shards.index import (
    INDEX_FOLDER,
    SUFFIX,
    Entry,
    ShardIndex,
    expand,
    foreign_index_path,
)
from hubert_pretrain.data.shards.reader import (
    READ,
    audio_of,
    contents,
    fields_of,
    label_of,
    text_of,
)
from hubert_pretrain.data.shards.tar import Member, Shard, open_shard
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.data.storage import is_url, read_json_at
from hubert_pretrain.distributed import usable_cores
from hubert_pretrain.errors import DataError


class WebDataset:
    """The utterances of tar shards, of this package or of others."""

    def __init__(
        self,
        *,
        root: str,
        train: Sequence[str],
        valid: Sequence[str] = (),
        test: Sequence[str] = (),
        text: str = "text",
        speaker: str = "speaker",
        label: str = "label",
        ids: str = "auto",
    ) -> None:
        """No file is read before `utterances` is called.

        Args:
            root: folder or URL above the shards.
            train: names of shards, below `root` or absolute: `train-{000000..000099}.tar` anywhere,
                `train-*.tar` where names can be listed.
            valid: the same; empty: stage `prepare` holds a share of `train` out.
            test: the same.
            text: field of the `json` members with the transcript. A `txt` member takes precedence.
            speaker: field of the `json` members with the speaker.
            label: field of the `json` members with the class label. A `cls` member takes
                precedence.
            ids: "key": the field `id` of the `json` member, else the key; "shard":
                `<shard>/<key>`, for shards that all number their keys from 0; "auto": shard when
                ids come again in another shard, else key.
        """
        check_choice("ids", ids, ("auto", "key", "shard"))
        self.root = str(root) if is_url(str(root)) else str(Path(root).expanduser().absolute())
        self.ids = ids
        self.shards = {"train": list(train), "valid": list(valid), "test": list(test)}
        self.fields = {"text": text, "speaker": speaker, "label": label}
        self.passed_over = PassedOver()

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every utterance, shard by shard. The index of each shard is stored in `folder`, so that a
        killed run reads only the remaining shards.

        A sample without audio or with broken fields has a fault. Raises DataError for shards that
        are missing, truncated or not tar files, for links and the like in them, and for shards that
        differ from the index beside them.
        """
        shards: list[tuple[str, str]] = []
        for split, patterns in self.shards.items():
            if patterns:
                shards += [(split, shard) for shard in expand(patterns, self.root)]
        self.passed_over = PassedOver()
        by_shard = self.ids == "shard" or (self.ids == "auto" and self._ids_repeat(shards, folder))
        for split, shard, index in self._indices(shards, folder):
            self.passed_over.kinds.update(index.unread)
            for entry in index.entries:
                yield self._utterance(entry, shard, split, by_shard)

    def _indices(
        self, shards: list[tuple[str, str]], folder: Path
    ) -> Iterator[tuple[str, str, ShardIndex]]:
        """(split, shard, index) of every shard."""
        with ThreadPoolExecutor(usable_cores()) as pool:
            indices = pool.map(
                lambda shard: self._index(shard, folder / INDEX_FOLDER),
                [shard for _, shard in shards],
            )
            for (split, shard), index in zip(shards, indices, strict=True):
                yield split, shard, index

    def _ids_repeat(self, shards: list[tuple[str, str]], folder: Path) -> bool:
        """True when an id is in several shards. Memory: 8 bytes for each."""
        hashes = array("q")
        for _, _, index in self._indices(shards, folder):
            hashes.extend(hash(_id_of(entry)) for entry in index.entries)
        return len(np.unique(np.frombuffer(hashes, dtype=np.int64))) < len(hashes)

    def _utterance(self, entry: Entry, shard: str, split: str, by_shard: bool) -> SourceUtterance:
        fields = entry.fields or {}
        shard_name = os.path.splitext(shard.removeprefix(self.root).lstrip("/"))[0]
        return SourceUtterance(
            id=f"{shard_name}/{entry.id}" if by_shard else _id_of(entry),
            path=shard,
            split=split,
            speaker=fields.get("speaker", ""),
            text=fields.get("text", ""),
            label=fields.get("label", ""),
            offset=entry.offset,
            num_bytes=entry.num_bytes,
            fault=fields.get("fault", ""),
        )

    def _index(self, shard: str, folder: Path) -> ShardIndex:
        """The index of a shard: from an earlier run if the shard has not changed, else by reading
        it.
        """
        if shard.endswith(("gz", "tgz")):
            raise DataError(
                f"{shard}: is compressed as a whole, so its members cannot be read one by one; "
                "unpack it to a .tar (audio hardly shrinks)"
            )
        made_of = self._identity(shard)
        place = foreign_index_path(folder, shard)
        index = ShardIndex.load(place)
        if index is None or index.made_of != made_of:
            index = self._read(shard, made_of)
            index.save(place)
        return index

    def _identity(self, shard: str) -> str:
        """A hash that changes with the shard and with the fields to read. A shard behind a URL is
        identified by its name alone.
        """
        facts = [shard, *self.fields.values()]
        if not is_url(shard):
            try:
                status = os.stat(shard)
            except OSError as error:
                raise DataError(
                    f"{shard}: no such shard; restore it, "
                    "or name others with data.corpus.train, .valid and .test"
                ) from error
            facts += [str(status.st_size), str(status.st_mtime_ns)]
        return hashlib.blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()

    def _read(self, shard: str, made_of: str) -> ShardIndex:
        tar = Shard(shard)
        with open_shard(shard) as file:
            entries = [self._entry(tar, sample) for sample in tar.samples(file)]
        index = ShardIndex(
            shard=os.path.basename(shard),
            size=tar.size,
            sha256=tar.sha256,
            made_of=made_of,
            entries=entries,
            unread=dict(tar.passed_over.kinds),
        )
        _refuse_other_than_promised(shard, index)
        return index

    def _entry(self, tar: Shard, sample: list[Member]) -> Entry:
        key = sample[0].key
        where = f"{tar.where}: {key}"
        members = contents(sample)
        for extension in members:
            if extension.rpartition(".")[2] not in READ:
                tar.passed_over.add(f"{key}.{extension}")
        try:
            extension = audio_of(tar.where, key, list(members))
            fields = fields_of(where, members)
            stored = {
                "id": str(fields.get("id") or ""),
                "speaker": str(fields.get(self.fields["speaker"]) or ""),
                "text": text_of(where, members, self.fields["text"]),
                "label": label_of(where, members, self.fields["label"]),
            }
        except DataError as error:
            fault = str(error).removeprefix(f"{tar.where}: ")
            return Entry(id=key, name=key, offset=0, num_bytes=0, fields={"fault": fault})
        member = next(member for member in sample if member.extension == extension)
        return Entry(
            id=key,
            name=f"{key}.{extension}",
            offset=member.offset,
            num_bytes=len(member.data),
            fields=stored,
        )


def _id_of(entry: Entry) -> str:
    return (entry.fields or {}).get("id") or entry.id


def _refuse_other_than_promised(shard: str, found: ShardIndex) -> None:
    """Raises DataError when our writer's index beside the shard differs."""
    value = read_json_at(f"{shard}{SUFFIX}")
    promised = ShardIndex.parse(value) if isinstance(value, dict) else None
    if promised is None or promised.sha256 == found.sha256:
        return
    other_content = " with another content" if promised.size == found.size else ""
    raise DataError(
        f"{shard}: has {found.size} bytes and {len(found.entries)} utterances, its index promises "
        f"{promised.size} and {len(promised.entries)}{other_content}; copy the shard again"
    )
