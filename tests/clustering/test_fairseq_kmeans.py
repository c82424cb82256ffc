"""Import of pickled k-means: files of scikit-learn and joblib are read, hostile ones do nothing."""

from __future__ import annotations

import importlib.util
import os
import pickle
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
import transformers
from hubert_pretrain.tools.import_kmeans import main as tool_main
from sklearn.cluster import KMeans, MiniBatchKMeans

from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.clustering.fairseq_kmeans import import_kmeans
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.features.log_mel import LogMel
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.stages.units import load_units

FRAMES = np.random.default_rng(0).normal(size=(500, 39)).astype(np.float32)

TINY_WAVLM = transformers.WavLMConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)


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
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 378\n")
    with pytest.raises(ArtefactError, match=r"km\.bin: is a pointer of git-lfs"):
        import_kmeans(path, Mfcc(), trust_pickle=False)


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "named pt", "old pt", "double npy"])
def test_matrices_of_numpy_and_torch_need_no_trust(tmp_path: Path, kind: str) -> None:
    centroids = torch.from_numpy(FRAMES[:6])
    path = tmp_path / f"km.{kind[-3:].strip()}"
    if kind == "npy":
        np.save(path, centroids.numpy())
    elif kind == "double npy":
        np.save(path, centroids.double().numpy())
    elif kind == "npz":
        np.savez(path, cluster_centers_=centroids.numpy(), counts=np.ones(6))
    elif kind == "named pt":
        torch.save({"n_features_in_": 39, "cluster_centers_": centroids}, path)
    else:
        torch.save(centroids, path, _use_new_zipfile_serialization=kind == "pt")
    codebooks = import_kmeans(path, Mfcc(), trust_pickle=False)
    torch.testing.assert_close(codebooks.parts[0].codebook.centroids, centroids, rtol=0, atol=0)


def test_files_without_a_matrix_are_refused_and_run_nothing(tmp_path: Path) -> None:
    path = tmp_path / "km"
    for content in (
        torch.zeros(39),
        {"a": torch.zeros(5, 39), "b": 1},
        {},
        torch.zeros(5, 39).int(),
    ):
        torch.save(content, path)
        with pytest.raises(ArtefactError, match="holds no matrix of centroids; expected one"):
            import_kmeans(path, Mfcc(), trust_pickle=False)
    torch.save({"centroids": Bomb(tmp_path / "sentinel")}, path)
    with pytest.raises(ArtefactError, match="holds no matrix of centroids"):
        import_kmeans(path, Mfcc(), trust_pickle=False)
    np.save(tmp_path / "bomb.npy", np.array([Bomb(tmp_path / "sentinel")]), allow_pickle=True)
    with pytest.raises(ArtefactError, match=r"bomb\.npy: cannot be read"):
        import_kmeans(tmp_path / "bomb.npy", Mfcc(), trust_pickle=False)
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ArtefactError, match="cannot be read"):
        import_kmeans(path, Mfcc(), trust_pickle=False)
    assert not (tmp_path / "sentinel").exists()


def test_the_tool_for_log_mel_and_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "km.npy", FRAMES[:5, :30])
    words = [str(tmp_path / "km.npy"), str(tmp_path / "out"), "--features"]
    assert tool_main([*words, "log_mel", "--num-mel-bins", "30"]) == 0
    assert "K=5, 30 dimensions" in capsys.readouterr().out
    units = load_units(tmp_path / "out")
    assert isinstance(units.extractor, LogMel)
    assert len(units(np.zeros(16_000, np.float32))) == 49
    assert tool_main([*words, "log_mel", "--num-mel-bins", "30"]) == 0, "again"
    assert tool_main([*words, str(tmp_path)]) == 2
    assert "--layer has no value" in capsys.readouterr().err

    torch.manual_seed(0)
    transformers.WavLMModel(TINY_WAVLM).save_pretrained(tmp_path / "wavlm")
    np.save(tmp_path / "km.npy", FRAMES[:5, :16])
    words = [str(tmp_path / "km.npy"), str(tmp_path / "of_layer"), "--features"]
    assert tool_main([*words, str(tmp_path / "wavlm"), "--transformers", "--layer", "2"]) == 0
    units = load_units(tmp_path / "of_layer")
    assert units.codebooks.features["kind"] == "transformers_layer"
    assert len(units(np.zeros(16_000, np.float32))) == 49


def test_the_tool_writes_over_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not over the codebook of a stage, whose files have the same names."""
    np.save(tmp_path / "km.npy", FRAMES[:5])
    stage = tmp_path / "it1" / "cluster"
    import_kmeans(tmp_path / "km.npy", Mfcc(), trust_pickle=False).save(stage)
    (stage / "meta.json").write_text('{"stage": "it1/cluster"}')
    before = (stage / "codebook.json").read_bytes()
    np.save(tmp_path / "km.npy", FRAMES[:6])
    assert tool_main([str(tmp_path / "km.npy"), str(stage)]) == 1
    assert "is a finished stage of a run; name an empty or new folder" in capsys.readouterr().err
    assert tool_main([str(tmp_path / "km.npy"), str(tmp_path)]) == 1
    assert "holds it1 of something else" in capsys.readouterr().err
    assert (stage / "codebook.json").read_bytes() == before


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
