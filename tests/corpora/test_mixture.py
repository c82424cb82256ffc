"""Several corpora as one: names, splits and errors of a mixture."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import DataConfig, Recipe
from hubert_pretrain.corpora.folder import Folder
from hubert_pretrain.corpora.mixture import Mixture
from hubert_pretrain.corpora.with_alignments import WithAlignments
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.source import passed_over
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import prepare


def mixture(tmp_path: Path, *more: str) -> Recipe:
    words = [
        "+recipe=smoke",
        "data=mixture",
        f"data.corpus.corpora.librispeech.root={tmp_path}/ls",
        *more,
    ]
    return compose.recipe_of(words)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"weights": "{librispeech: 1, onw: 1}"},
            r"corpus_weights: no corpus 'onw' in the mixture \(did you mean 'own'\?\)",
        ),
        (
            {"weights": "{own: 1}"},
            r"corpus_weights: has no weight for corpus 'librispeech'; give it one",
        ),
        (
            {"weights": "{own: -1, librispeech: 1}"},
            r"corpus_weights=.*: expected numbers from 0 up",
        ),
        (
            {"weights": "{own: 1, librispeech: 1}", "temperature": "2"},
            r"corpus_temperature: has no meaning beside",
        ),
        (
            {"temperature": "0"},
            r"it1\.pretrain\.corpus_temperature=0\.0: expected a number above 0",
        ),
    ],
)
def test_weights_that_cannot_be_are_found_before_anything_runs(
    tmp_path: Path, values: dict[str, str], message: str
) -> None:
    words = [f"++iterations.it1.pretrain.corpus_{name}={value}" for name, value in values.items()]
    with pytest.raises(ConfigError, match=message):
        mixture(tmp_path, "data.corpus.corpora.own.root=/own", *words)


def test_a_mixture_is_prepared_with_names_and_splits(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "ls").symlink_to(shared / "data/librispeech")
    own = f"{shared}/data/librispeech/test-other"
    key = "data.corpus.corpora.librispeech"
    words = [f"{key}.train=[train-clean-100]", f"{key}.valid=[]", f"+{key}.test=[test-other]"]
    recipe = mixture(tmp_path, f"data.corpus.corpora.own.root={own}", "data.workers=1", *words)
    folder = tmp_path / "prepare"
    folder.mkdir()
    prepare.run(recipe, Workspace(tmp_path), "prepare", folder)
    corpus = Corpus.open(folder)
    assert set(corpus.card["corpora"]) == {"librispeech", "own"}
    assert (
        corpus.card["duplicates"]["across_splits"] > 0
    )  # test-other is in both, and the card says so
    for row in range(len(corpus.manifest)):
        utterance = corpus.manifest[row]
        assert utterance.id.startswith(f"{utterance.corpus}/")
    assert {group.corpus for group in corpus.manifest.length_sorted("train")} == {
        "librispeech",
        "own",
    }
    assert {group.corpus for group in corpus.manifest.length_sorted("test")} == {"librispeech"}


def test_a_wrong_argument_inside_a_mixture_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^data\.corpus\.corpora\.own\.rot: .*Folder has no such argument "
        r"\(did you mean 'root'\?\)",
    ):
        mixture(tmp_path, "data.corpus.corpora.own.root=/x", "+data.corpus.corpora.own.rot=1")
    with pytest.raises(ConfigError, match=r"data\.corpus\.corpora\.own\.root has no value"):
        mixture(tmp_path)


def test_an_error_inside_a_mixture_is_one_line(tmp_path: Path) -> None:
    recipe = mixture(
        tmp_path, "data.corpus.corpora.own.root=/x", "+data.corpus.corpora.own.split_by=fold"
    )
    with pytest.raises(ConfigError, match=r"^data\.corpus\.split_by='fold': expected auto"):
        prepare.run(recipe, Workspace(tmp_path), "prepare", tmp_path)
    bad = Recipe(
        name="x",
        data=DataConfig(
            corpus={"_target_": "hubert_pretrain.corpora.mixture.Mixture", "corpora": {}}, root=None
        ),
    )
    with pytest.raises(ConfigError, match="corpora: is empty"):
        prepare.run(bad, Workspace(tmp_path), "prepare", tmp_path)


def test_files_that_its_corpora_pass_over_are_counted(tmp_path: Path) -> None:
    """Also through a corpus that wraps another."""
    for name in ("a/1.wav", "a/1.txt", "b/2.wav", "b/2.txt", "b/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "1.phn").write_text("0 400 a\n")
    aligned = WithAlignments(
        corpus=Folder(root=str(tmp_path / "a")), alignments=str(tmp_path / "1.phn")
    )
    source = Mixture(corpora={"a": aligned, "b": Folder(root=str(tmp_path / "b"))})
    for _ in range(2):
        assert [one.id for one in source.utterances(tmp_path / "out")] == ["a/1", "b/2"]
        assert passed_over(source).kinds == {".txt": 2, ".jpg": 1}
