"""Names, patterns and indexes of shards."""

import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.shards import index, writer
from hubert_pretrain.data.shards.index import expand, key_of
from hubert_pretrain.errors import DataError
from tests.counted import Counted


def test_a_shard_that_differs_from_its_index_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    list(writer.write_shards(corpus, tmp_path / "s", format="pcm", workers=1))
    shard = tmp_path / "s" / "train-000000.tar"
    entries = index.verify(shard, content=True).entries
    _flip(shard, entries[0].offset + 100)
    with pytest.raises(DataError, match=r"its content changed"):
        index.verify(shard, content=True)
    os.truncate(shard, entries[-1].offset - tarfile.BLOCKSIZE)  # at the boundary of a member
    with pytest.raises(
        DataError,
        match=rf"train-000000\.tar: has {shard.stat().st_size} bytes, "
        rf"its index says \d+ for {len(entries)}",
    ):
        index.verify(shard)
    shard.unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar: missing"):
        index.verify(shard)
    index.sidecar(shard).write_text('{"format": "hubert_pretrain.shard.1"}')
    with pytest.raises(DataError, match=r"index\.json: missing or damaged"):
        index.verify(shard)


@given(ids=st.lists(st.text(min_size=1, max_size=120), unique=True, max_size=8))
def test_keys_are_safe_and_differ(ids: list[str]) -> None:
    keys = [key_of(id) for id in ids]
    assert len({*keys}) == len(ids)
    for key in keys:
        assert key.isascii()
        assert 0 < len(key) <= 80
        assert not set(key) & set("./\\ \n\0")


def test_usual_ids_are_their_own_keys() -> None:
    assert key_of("84-121123-0000") == "84-121123-0000"
    assert key_of("../../etc/passwd").startswith("______etc_passwd-")


def _flip(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


def test_patterns_name_shards(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"t-{number}.tar").touch()
    names = [str(tmp_path / f"t-{number}.tar") for number in range(3)]
    assert (
        expand(["t-{0..2}.tar"], str(tmp_path))
        == expand(["t-*.tar"], str(tmp_path))
        == expand(names)
        == names
    )
    assert expand(["a-{08..10}.tar"], "s3://bucket/x/") == [
        f"s3://bucket/x/a-{number}.tar" for number in ("08", "09", "10")
    ]
    with pytest.raises(DataError, match=r"v-\*\.tar: no shards of such a name"):
        expand(["v-*.tar"], str(tmp_path))
    with pytest.raises(DataError, match="is named twice"):
        expand(["t-0.tar", "t-*.tar"], str(tmp_path))


@pytest.mark.parametrize("count", [1_000, 3_000])
def test_the_names_of_many_shards_take_linear_time(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Counted.compared = 0
    names = [Counted(f"train-{number:06d}.tar") for number in range(count)]
    monkeypatch.setattr(index, "_matches", lambda pattern: names)
    assert expand(["train-*.tar"]) == names
    assert Counted.compared < 5 * count
    names.append(names[1])
    with pytest.raises(DataError, match=r"train-000001\.tar: is named twice by train-\*\.tar"):
        expand(["train-*.tar"])
