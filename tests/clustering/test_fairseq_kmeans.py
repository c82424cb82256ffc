"""Import of pickled k-means: files of scikit-learn and joblib are read, hostile ones do nothing."""

from __future__ import annotations

import importlib.util
import os
import pickle
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.cluster import KMeans, MiniBatchKMeans

from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.clustering.fairseq_kmeans import import_kmeans
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.features.mfcc import Mfcc

FRAMES = np.random.default_rng(0).normal(size=(500, 39)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "dump"),
    [
        (MiniBatchKMeans, "joblib"),
        (KMeans, "joblib"),
        (MiniBatchKMeans, "pickle 2"),
        (MiniBatchKMeans, "pickle 5"),
    ],
)
def test_models_of_scikit_learn_are_read(tmp_path: Path, kind: type, dump: str) -> None:
    estimator = kind(7, n_init=1, random_state=np.random.RandomState(3)).fit(FRAMES)
    if dump == "joblib":
        joblib.dump(estimator, tmp_path / "km.bin")
    else:
        (tmp_path / "km.bin").write_bytes(pickle.dumps(estimator, protocol=int(dump[-1])))
    codebooks = import_kmeans(tmp_path / "km.bin", Mfcc(), trust_pickle=True)
    np.testing.assert_array_equal(
        codebooks.parts[0].codebook.centroids.numpy(), estimator.cluster_centers_.astype(np.float32)
    )
    codebooks.save(tmp_path / "codebook")
    CodebookSet.load(tmp_path / "codebook").check_features(Mfcc())


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, sentinel: Path, function: object = os.mkdir) -> None:
        self.sentinel = sentinel
        self.function = function

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return self.function, (str(self.sentinel),)


def hostile(tmp_path: Path, how: str) -> Path:
    bomb = Bomb(tmp_path / "sentinel")
    path = tmp_path / "km.bin"
    estimator = KMeans(3, n_init=1).fit(FRAMES)
    estimator.algorithm = bomb
    if how == "whole file":
        joblib.dump(bomb, path)
    elif how == "attribute":
        joblib.dump(estimator, path)
    elif how == "array of objects":
        # joblib's own reader would unpickle these with everything allowed.
        estimator.algorithm = np.array([bomb, bomb], dtype=object)
        joblib.dump(estimator, path)
    elif how == "eval":
        joblib.dump(Bomb(tmp_path / "sentinel", eval), path)
    else:
        path.write_bytes(pickle.dumps(estimator, protocol=2))
    return path


@pytest.mark.parametrize("how", ["attribute", "array of objects", "eval", "plain pickle"])
def test_a_pickle_bomb_does_not_run_even_when_trusted(tmp_path: Path, how: str) -> None:
    path = hostile(tmp_path, how)
    with pytest.raises(ArtefactError, match=r"km.bin: was not read: .*(asks for|array of objects)"):
        import_kmeans(path, Mfcc(), trust_pickle=True)
    assert not (tmp_path / "sentinel").exists()
    if how != "eval":
        joblib.load(path)
        assert (tmp_path / "sentinel").exists(), "the bomb is a real one"


def test_without_the_flag_it_says_what_it_would_do(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"is a pickle, a program that could run anything\. "
        "With --trust-pickle it is read in a process",
    ):
        import_kmeans(hostile(tmp_path, "whole file"), Mfcc(), trust_pickle=False)
    assert not (tmp_path / "sentinel").exists()


def test_the_process_that_reads_can_open_nothing(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "from hubert_pretrain.clustering.kmeans_sandbox import give_up_rights\n"
        "give_up_rights()\n"
        "open('/dev/null')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode
    assert "Too many open files" in done.stderr


def test_files_without_a_codebook_of_these_features_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "km.bin"
    joblib.dump(KMeans(7, n_init=1).fit(FRAMES[:, :13]), path)
    with pytest.raises(
        ArtefactError,
        match=r"7 centroids of dimension 13, but the frames of mfcc \(dim 39\) have dimension 39",
    ):
        import_kmeans(path, Mfcc(), trust_pickle=True)
    joblib.dump(KMeans(7), path)
    with pytest.raises(ArtefactError, match="no fitted k-means"):
        import_kmeans(path, Mfcc(), trust_pickle=True)
    joblib.dump(KMeans(7, n_init=1).fit(FRAMES), path, compress=3)
    with pytest.raises(ArtefactError, match="compressed or no pickle; dump it again"):
        import_kmeans(path, Mfcc(), trust_pickle=True)
    joblib.dump(KMeans(7, n_init=1).fit(FRAMES), path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ArtefactError, match="was not read"):
        import_kmeans(path, Mfcc(), trust_pickle=True)
    with pytest.raises(ArtefactError, match="cannot be read"):
        import_kmeans(tmp_path / "none", Mfcc(), trust_pickle=True)


def test_the_tool(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location(
        "import_kmeans", repository / "tools" / "import_kmeans.py"
    )
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    joblib.dump(KMeans(7, n_init=1).fit(FRAMES), tmp_path / "km.bin")
    words = [str(tmp_path / "km.bin"), str(tmp_path / "out")]
    assert tool.main(words) == 2
    assert "--trust-pickle" in capsys.readouterr().err
    assert tool.main([*words, "--trust-pickle"]) == 0
    assert "K=7, 39 dimensions" in capsys.readouterr().out
    assert CodebookSet.load(tmp_path / "out").sizes == [7]
