"""Round trips of every format: content that the format can hold is read back equal; other content
is refused or listed here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubert_pretrain.data import audio
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats import huggingface, registry
from hubert_pretrain.formats.record import ReadOptions, header_of

WORDS = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="|"), min_size=1, max_size=6
)
NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)
TEXTS = st.lists(WORDS, max_size=4).map(" ".join)
SPLITS = st.sampled_from(["train", "valid", "test"])


@st.composite
def utterances(
    draw: st.DrawFn, files: list[Path], parts: bool, distinct: bool = False
) -> list[SourceUtterance]:
    """Utterances of the files: whole files, and with `parts` also segments; `distinct`: one for
    each file.
    """
    ids = draw(st.lists(NAMES, min_size=1, max_size=len(files), unique=True))
    found = []
    for i, id in enumerate(ids):
        path = files[i] if distinct else draw(st.sampled_from(files))
        utterance = SourceUtterance(
            id=id,
            path=path,
            split=draw(SPLITS),
            speaker=draw(NAMES | st.just("")),
            text=draw(TEXTS),
            label=draw(NAMES),
            corpus="c",
        )
        length = header_of(utterance).resampled
        if not parts:
            found.append(replace(utterance, expected_samples=length))
            continue
        start = draw(st.integers(0, length - 1))
        num_samples = draw(st.integers(1, length - start))
        found.append(
            replace(
                utterance, start=start, num_samples=num_samples, phones=draw(phones(num_samples))
            )
        )
    return found


@st.composite
def phones(draw: st.DrawFn, num_samples: int) -> list[tuple[str, int, int]] | None:
    edges = draw(st.lists(st.integers(0, num_samples), max_size=6, unique=True).map(sorted))
    return [
        (draw(NAMES), start, end) for start, end in zip(edges[::2], edges[1::2], strict=False)
    ] or None


def round_trip(
    given: list[SourceUtterance], to: str, name: str, lost: tuple[str, ...] = ()
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(what was written, what was read) by id, without the fields that the format loses."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / name
        form = registry.FORMATS[to]
        assert form.write is not None
        form.write(target, lambda: iter(given))
        read = [utterance for _, utterance in registry.read(target, "auto", ReadOptions())]
        assert {format for _, format in registry.find_manifests(target, "auto", {})} == {to}
    return table(given, lost), table(read, lost)


def table(
    found: list[SourceUtterance] | Iterator[SourceUtterance], lost: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Utterances as dictionaries, in order, with the path as text."""
    names = [field.name for field in fields(SourceUtterance) if field.name not in lost]
    rows = [
        {name: getattr(utterance, name) for name in names} | {"path": str(utterance.path)}
        for utterance in found
    ]
    return sorted(rows, key=lambda row: (row["split"], row.get("id", ""), row["path"]))


MANY = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(
    ("to", "name"),
    [("csv", "list.csv"), ("tsv", "list.tsv"), ("jsonl", "list.jsonl"), ("jsonl", "list.jsonl.gz")],
)
def test_tables_hold_everything_but_phones(audio_files: list[Path], to: str, name: str) -> None:
    @MANY
    @given(st.data())
    def check(data: st.DataObject) -> None:
        written, read = round_trip(
            data.draw(utterances(audio_files, parts=True)), to, name, lost=("phones",)
        )
        assert written == read

    check()


@pytest.mark.parametrize(("to", "name"), [("csv", "x.csv"), ("jsonl", "x.jsonl")])
def test_tables_hold_any_text_and_shards(tmp_path: Path, to: str, name: str) -> None:
    """Commas, quotation marks, tabs and line breaks; places in shards; URLs."""

    @MANY
    @given(
        st.text(
            st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from('\n\t",;'), max_size=30
        ),
        st.integers(0, 2**60),
    )
    def check(text: str, offset: int) -> None:
        utterance = SourceUtterance(
            id="x",
            path="s3://bucket/a b.tar",
            split="other",
            text=text.strip(),
            offset=offset,
            num_bytes=offset + 1,
            num_samples=5,
        )
        written, read = round_trip([utterance], to, name)
        assert written == read

    check()


def test_lhotse_holds_everything(audio_files: list[Path]) -> None:
    @MANY
    @given(utterances(audio_files, parts=True), st.sampled_from(["cuts.jsonl", "cuts.jsonl.gz"]))
    def check(given: list[SourceUtterance], name: str) -> None:
        written, read = round_trip(given, "lhotse", name)
        assert written == read

    check()


def test_kaldi_holds_segments_texts_and_speakers(audio_files: list[Path]) -> None:
    @MANY
    @given(utterances(audio_files, parts=True))
    def check(given: list[SourceUtterance]) -> None:
        given = [
            replace(
                utterance, speaker="" if utterance.speaker == utterance.id else utterance.speaker
            )
            for utterance in given
        ]
        written, read = round_trip(
            given, "kaldi", "data", lost=("phones", "label", "corpus", "num_samples")
        )
        assert written == read

    check()


def test_kaldi_lengths_of_segments_are_exact(audio_files: list[Path], tmp_path: Path) -> None:
    """A segment up to the end of its file is read as one without an end, or with its exact
    length.
    """
    given = [
        SourceUtterance(
            id=f"u{n}", path=audio_files[0], split="train", start=n, num_samples=1000 - 2 * n
        )
        for n in range(0, 400, 7)
    ]
    _, read = round_trip(given, "kaldi", "data")
    assert {row["id"]: (row["start"], row["num_samples"] or 1000) for row in read} == {
        utterance.id: (utterance.start, utterance.num_samples) for utterance in given
    }


def test_fairseq_holds_files_lengths_and_texts(audio_files: list[Path]) -> None:
    @MANY
    @given(
        utterances(
            [path for path in audio_files if path.stem in ("a", "b c")], parts=False, distinct=True
        )
    )
    def check(given: list[SourceUtterance]) -> None:
        written, read = round_trip(
            given, "fairseq", "lists", lost=("id", "speaker", "label", "corpus", "phones")
        )
        assert written == read

    check()


def test_huggingface_holds_the_audio_too(audio_files: list[Path]) -> None:
    @settings(MANY, max_examples=15)
    @given(utterances(audio_files, parts=True))
    def check(given: list[SourceUtterance]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            huggingface.write(Path(folder), lambda: iter(given))
            read = {
                utterance.id: utterance
                for _, utterance in registry.read(Path(folder), "auto", ReadOptions())
            }
            assert read.keys() == {utterance.id for utterance in given}
            for utterance in given:
                one = read[utterance.id]
                assert (one.split, one.speaker, one.text, one.label, one.corpus) == (
                    utterance.split,
                    utterance.speaker,
                    utterance.text,
                    utterance.label,
                    utterance.corpus,
                )
                expected = audio.read(utterance.path, utterance.start, utterance.num_samples)
                found = audio.read(one.path)
                assert found.shape == expected.shape
                assert abs(found - expected).max() <= 2**-15

    check()


@pytest.fixture
def shard(audio_files: list[Path], tmp_path: Path) -> list[SourceUtterance]:
    """Two audio files of one rate inside another file, with other bytes around them."""
    path = tmp_path / "shards" / "000.tar"
    content = b"x" * 512
    found = []
    for i, file in enumerate(audio_files[:2]):
        data = file.read_bytes()
        place = {"path": str(path), "offset": len(content), "num_bytes": len(data)}
        found.append(
            SourceUtterance(
                id=f"u{i}", split="train", text="HI", expected_samples=1000 + 100 * i, **place
            )
        )  # type: ignore[arg-type]
        content += data + b"y" * 100
    path.parent.mkdir()
    path.write_bytes(content)
    return found


def test_fairseq_names_bytes_in_shards(shard: list[SourceUtterance]) -> None:
    """`path:offset:bytes`, as fairseq's parse_path reads it."""
    written, read = round_trip(shard, "fairseq", "lists", lost=("id",))
    assert written == read


def test_huggingface_takes_audio_out_of_shards(
    shard: list[SourceUtterance], audio_files: list[Path], tmp_path: Path
) -> None:
    huggingface.write(tmp_path / "out", lambda: iter(shard))
    read = [utterance for _, utterance in registry.read(tmp_path / "out", "auto", ReadOptions())]
    assert [Path(utterance.path).read_bytes() for utterance in read] == [
        path.read_bytes() for path in audio_files[:2]
    ]
    assert [Path(utterance.path).suffix for utterance in read] == [".wav", ".flac"]


def test_content_without_a_place_in_a_format_is_refused(
    audio_files: list[Path], shard: list[SourceUtterance], tmp_path: Path
) -> None:
    wave = SourceUtterance(id="a", path=audio_files[0], split="train")
    eight = SourceUtterance(id="e", path=audio_files[2], split="train")
    for to, name, members, message in [
        (
            "fairseq",
            "f",
            [replace(wave, start=10)],
            "is a part of .*fairseq knows whole files only",
        ),
        ("fairseq", "f", [replace(wave, text="A|B")], r"holds '\|'"),
        ("fairseq", "f", [replace(wave, path="s3://x/a.wav")], "is a URL"),
        ("fairseq", "f", [wave, eight], "'a' has 16000 Hz, 'e' 8000"),
        ("kaldi", "k", [replace(wave, id="a b")], "its id 'a b' holds blanks"),
        ("kaldi", "k", [replace(wave, speaker="a b")], "its speaker 'a b' holds blanks"),
        ("kaldi", "k", shard, "is a shard"),
        ("lhotse", "c.jsonl", shard, "lies inside the shard"),
        (
            "lhotse",
            "c.jsonl",
            [replace(wave, start=900, num_samples=200)],
            "has 1000 samples at 16 kHz, utterance 'a' is 200 samples from 900 on",
        ),
        ("tsv", "x.tsv", [replace(wave, text="a\tb")], "a text holds a tab"),
        ("csv", "x.csv", [replace(wave, text="a\rb")], "a text holds a carriage return"),
        ("huggingface", "h", [replace(wave, path=tmp_path / "gone.wav")], "gone.wav: no such file"),
    ]:
        form = registry.FORMATS[to]
        assert form.write is not None
        with pytest.raises(DataError, match=message):
            form.write(tmp_path / "bad" / name, partial(iter, members))
        assert not [path for path in (tmp_path / "bad").rglob("*") if path.is_file()]
