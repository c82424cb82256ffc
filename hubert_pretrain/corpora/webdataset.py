"""Tar shards in WebDataset's form, on disk or behind URLs: per key one audio member (`x.flac`), and
optionally `x.txt` and `x.json`.

Stage `prepare` reads every shard once and records the byte range of each utterance, and the shard's
size and sha256. Training then reads utterances in any order: the batch of a step does not depend on
the number of shards, workers or devices.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hubert_pretrain.corpora.common import check_choice
from hubert_pretrain.data.shards.index import (
    INDEX_FOLDER,
    SUFFIX,
    Entry,
    ShardIndex,
    expand,
    foreign_index_path,
)
from hubert_pretrain.data.shards.reader import audio_of, contents, fields_of, text_of
from hubert_pretrain.data.shards.tar import Member, Shard, open_shard
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.data.storage import is_url, read_json_at
from hubert_pretrain.distributed import usable_cores
from hubert_pretrain.errors import DataError

_PASSTHROUGH = ("speaker", "label")
"""Fields of the `json` members that are taken as they are."""


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
        ids: str = "key",
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
            label: field of the `json` members with the class label.
            ids: "key": the field `id` of the `json` member, else the key; "shard":
                `<shard>/<key>`, for shards that all number their keys from 0.
        """
        check_choice("ids", ids, ("key", "shard"))
        self.root = str(root) if is_url(str(root)) else str(Path(root).expanduser().absolute())
        self.ids = ids
        self.shards = {"train": list(train), "valid": list(valid), "test": list(test)}
        self.fields = {"text": text, "speaker": speaker, "label": label}

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every utterance, shard by shard. The index of each shard is stored in `folder`, so that a
        killed run reads only the remaining shards.

        Raises DataError for shards that are missing, truncated or not tar files, for unexpected
        members, and for shards that differ from the index beside them.
        """
        shards: list[tuple[str, str]] = []
        for split, patterns in self.shards.items():
            if patterns:
                shards += [(split, shard) for shard in expand(patterns, self.root)]
        with ThreadPoolExecutor(usable_cores()) as pool:
            indices = pool.map(
                lambda shard: self._index(shard, folder / INDEX_FOLDER),
                [shard for _, shard in shards],
            )
            for (split, shard), index in zip(shards, indices, strict=True):
                for entry in index.entries:
                    yield self._utterance(entry, shard, split)

    def _utterance(self, entry: Entry, shard: str, split: str) -> SourceUtterance:
        fields = entry.fields or {}
        if self.ids == "shard":
            id = f"{os.path.basename(shard).partition('.')[0]}/{entry.id}"
        else:
            id = fields.get("id") or entry.id
        return SourceUtterance(
            id=id,
            path=shard,
            split=split,
            speaker=fields.get("speaker", ""),
            text=fields.get("text", ""),
            label=fields.get("label", ""),
            offset=entry.offset,
            num_bytes=entry.num_bytes,
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
            entries = [self._entry(shard, sample) for sample in tar.samples(file)]
        index = ShardIndex(
            shard=os.path.basename(shard),
            size=tar.size,
            sha256=tar.sha256,
            made_of=made_of,
            entries=entries,
        )
        _refuse_other_than_promised(shard, index)
        return index

    def _entry(self, shard: str, sample: list[Member]) -> Entry:
        key = sample[0].key
        members = contents(sample)
        extension = audio_of(shard, key, list(members))
        member = next(member for member in sample if member.extension == extension)
        where = f"{shard}: {key}"
        fields = fields_of(where, members)
        stored = {name: str(fields.get(self.fields[name]) or "") for name in _PASSTHROUGH}
        stored["id"] = str(fields.get("id") or "")
        stored["text"] = text_of(where, members, self.fields["text"])
        return Entry(
            id=key,
            name=f"{key}.{extension}",
            offset=member.offset,
            num_bytes=len(member.data),
            fields=stored,
        )


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
