"""Clusters of utterances are sampled by their weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.formats.utterance_clusters import read_clusters, training_utterances
from tests.data.test_corpus_weights import build, manifest_of, sampled_by


def file_of(folder: Path, manifest: Manifest) -> Path:
    """Clusters across the three corpora: utterances whose number ends with 0 or 1, and the rest."""
    ids = [manifest[row].id for row in range(len(manifest))]
    path = folder / "clusters.tsv"
    lines = [f"{each}\t{'rare' if each[2] in '01' else 'common'}\n" for each in ids]
    path.write_text("".join(lines) + "\nof-another-corpus\trare\n")
    return path


def test_clusters_stand_for_corpora(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path)
    path = file_of(tmp_path, manifest)
    groups = training_utterances(manifest, str(path))
    assert [group.corpus for group in groups] == ["common", "rare"]
    rows = [group.rows(np.arange(len(group))) for group in groups]
    assert sorted(np.concatenate(rows)) == sorted(manifest.rows("train"))
    for group in groups:
        assert (np.diff(group.num_samples(np.arange(len(group)))) >= 0).all()
    of_rare = {manifest[int(row)].id[2] for row in rows[1]}
    assert of_rare == {"0", "1"}
    assert [group.corpus for group in training_utterances(manifest, None)] == [
        *("large", "middle", "small")
    ]


def test_weights_are_those_of_the_clusters(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path)
    groups = training_utterances(manifest, str(file_of(tmp_path, manifest)))
    plan = build(groups, corpus_weights={"common": 1, "rare": 3})
    _, frames = sampled_by(plan, 0, 2 * plan.epoch_micro_batches)
    rare = set(groups[1].rows(np.arange(len(groups[1]))).tolist())
    share = sum(frames[row] for row in rare) / sum(frames.values())
    assert share == pytest.approx(0.75, abs=0.02)
    again = pickle.loads(pickle.dumps(plan))  # as a loader's worker gets it
    assert np.array_equal(again.micro_batch(5).rows, plan.micro_batch(5).rows)
    assert len(pickle.dumps(plan)) < 10_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "000-large common\n",
            r"line 1: expected an utterance id, a tab and .* '000-large common'",
        ),
        ("a\tx\na\ty\n", "line 2: 'a' is in cluster 'y' here and in 'x' before"),
        ("000-large\tx\n", r"no cluster for 519 of 520 utterances of train, first .* make it with"),
    ],
)
def test_files_that_cannot_be(tmp_path: Path, content: str, message: str) -> None:
    manifest = manifest_of(tmp_path)
    path = tmp_path / "clusters.tsv"
    path.write_text(content)
    with pytest.raises(DataError, match=f"clusters.tsv: .*{message}"):
        training_utterances(manifest, str(path))


def test_a_weight_of_no_cluster_and_clusters_without_weights(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path)
    path = file_of(tmp_path, manifest)
    assert read_clusters(path)["of-another-corpus"] == "rare"
    groups = training_utterances(manifest, str(path))
    with pytest.raises(DataError, match=r"no corpus 'comon' \(did you mean 'common'\?\)"):
        build(groups, corpus_weights={"comon": 1, "rare": 1})
    words = ["+recipe=smoke", f"iterations.it1.pretrain.utterance_clusters={path}"]
    with pytest.raises(ConfigError, match=r"it1.pretrain.utterance_clusters=.* changes nothing"):
        compose.recipe_of(words)
    recipe = compose.recipe_of([*words, "iterations.it1.pretrain.corpus_weights={rare: 1}"])
    assert recipe.iterations["it1"].pretrain.utterance_clusters == str(path)
