"""Tar shards in WebDataset's form, on disk or behind URLs: one audio member a key (`x.flac`), and
as they like `x.txt`, `x.json`.

Every shard is read through once in `prepare`, which notes where each utterance lies, the shard's
size and its sha256. Training then reads from any place in any order: what step n contains does not
depend on the number of shards, workers or devices.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hubert_pretrain.corpora.common import check_choice
from hubert_pretrain.data.shards.index import INDEX_FOLDER, SUFFIX, Entry, ShardIndex, expand, kept
from hubert_pretrain.data.shards.reader import audio_of, contents, fields_of, text_of
from hubert_pretrain.data.shards.tar import Member, Shard, open_shard
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.data.storage import is_url, read_json_at
from hubert_pretrain.distributed import usable_cores
from hubert_pretrain.errors import DataError

_PASSTHROUGH = ("speaker", "label")


class WebDataset:
    """Other people's shards, or ours."""

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
        """Nothing is read until `utterances`.

        Args:
            root: folder or URL that the shards lie below. train: their names, below `root` or
            absolute: `train-{000000..000099}.tar` anywhere, `train-*.tar` where names can be
            listed. valid: the same; none: a share of `train` is held out. test: the same. text,
            speaker, label: fields of the `json` members that hold them. A `txt` member comes before
            the text of a `json`. ids: key: an utterance is called as its `json` says under `id`,
            otherwise as its key; shard: `<shard>/<key>`, for shards
                that all count from 0.
        """
        check_choice("ids", ids, ("key", "shard"))
        self.root = str(root) if is_url(str(root)) else str(Path(root).expanduser().absolute())
        self.ids = ids
        self.shards = {"train": list(train), "valid": list(valid), "test": list(test)}
        self.fields = {"text": text, "speaker": speaker, "label": label}

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every utterance, shard by shard. What was found in a shard is kept in `folder`, so a
        killed run reads the others only.

        Raises DataError: shards are missing, were cut, are none, hold what they should not, or
        differ from their own index.
        """
        shards = [
            (split, shard)
            for split, names in self.shards.items()
            if names
            for shard in expand(names, self.root)
        ]
        with ThreadPoolExecutor(usable_cores()) as pool:
            found = pool.map(lambda named: self._index(named[1], folder / INDEX_FOLDER), shards)
            for (split, shard), index in zip(shards, found, strict=True):
                yield from (self._utterance(entry, shard, split) for entry in index.entries)

    def _utterance(self, entry: Entry, shard: str, split: str) -> SourceUtterance:
        said = entry.fields or {}
        id = (
            f"{os.path.basename(shard).partition('.')[0]}/{entry.id}"
            if self.ids == "shard"
            else said.get("id") or entry.id
        )
        text, speaker, label = (said.get(name, "") for name in ("text", *_PASSTHROUGH))
        offset = entry.offset
        num_bytes = entry.num_bytes
        return SourceUtterance(
            id=id,
            path=shard,
            split=split,
            speaker=speaker,
            text=text,
            label=label,
            offset=offset,
            num_bytes=num_bytes,
        )

    def _index(self, shard: str, folder: Path) -> ShardIndex:
        """What lies in a shard: as an earlier run found it, when the shard is the same still,
        otherwise by reading it through.
        """
        if shard.endswith(("gz", "tgz")):
            raise DataError(
                f"{shard}: is compressed as a whole, so nothing in it can be read alone; unpack it to a .tar (audio hardly shrinks)"
            )
        made_of = self._identity(shard)
        place = kept(folder, shard)
        index = ShardIndex.load(place)
        if index is None or index.made_of != made_of:
            index = self._read(shard, made_of)
            index.save(place)
        return index

    def _identity(self, shard: str) -> str:
        """Changes with the shard and with what is looked for in it. Of a shard behind a URL, only
        its name is known.
        """
        place = [shard, *self.fields.values()]
        if not is_url(shard):
            try:
                status = os.stat(shard)
            except OSError as error:
                raise DataError(
                    f"{shard}: no such shard; restore it, or name others with data.corpus.train, .valid and .test"
                ) from error
            place += [str(status.st_size), str(status.st_mtime_ns)]
        return hashlib.blake2b("\n".join(place).encode(), digest_size=16).hexdigest()

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
        said = {name: str(fields.get(self.fields[name]) or "") for name in _PASSTHROUGH}
        said |= {
            "id": str(fields.get("id") or ""),
            "text": text_of(where, members, self.fields["text"]),
        }
        return Entry(
            id=key,
            name=f"{key}.{extension}",
            offset=member.offset,
            num_bytes=len(member.data),
            fields=said,
        )


def _refuse_other_than_promised(shard: str, found: ShardIndex) -> None:
    """Raises DataError when the shard has an index of our writer beside it that says something
    else.
    """
    value = read_json_at(f"{shard}{SUFFIX}")
    promised = ShardIndex.parse(value) if isinstance(value, dict) else None
    if promised is None or promised.sha256 == found.sha256:
        return
    raise DataError(
        f"{shard}: has {found.size} bytes and {len(found.entries)} utterances, its index promises {promised.size} and "
        f"{len(promised.entries)}{'' if promised.size != found.size else ' with another content'}; copy the shard again"
    )
