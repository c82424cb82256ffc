"""Units of whole recordings, of arriving audio, and their runs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookPart, CodebookSet
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.features.combine import Concatenate, Deltas, Splice
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.features.log_mel import LogMel
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.targets.units import (
    Run,
    RunStream,
    StreamPolicy,
    UnitExtractor,
    UnitStream,
    receptive_field,
    runs,
)


def speech(num_samples: int, seed: int = 0) -> np.ndarray:
    """Noise whose colour and loudness change, so that units do."""
    draw = np.random.default_rng(seed)
    size = num_samples + 16
    loudness = np.repeat(draw.uniform(0.01, 0.5, size // 1000 + 1), 1000)[:size]
    return (np.convolve(draw.normal(size=size), draw.normal(size=9), "same") * loudness / 4).astype(
        np.float32
    )[:num_samples]


def extractor_of(extractor: object, n_clusters: int = 20) -> UnitExtractor:
    """Centroids are frames of other audio."""
    frames = extractor(torch.from_numpy(speech(40_000, seed=1))[None])[0]  # type: ignore[operator]
    centroids = frames[torch.linspace(0, len(frames) - 1, n_clusters).long()].clone()
    return UnitExtractor(
        extractor, CodebookSet.of(Codebook(centroids, extractor.fingerprint(), extractor.grid))
    )  # type: ignore


@pytest.fixture(scope="module")
def mfcc() -> UnitExtractor:
    return extractor_of(Mfcc())


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> UnitExtractor:
    torch.manual_seed(0)
    sizes = {
        "conv_dim": [8] * 7,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    folder = tmp_path_factory.mktemp("model")
    save_model(
        folder,
        Hubert(HubertConfig(**sizes, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)),
    )  # type: ignore[arg-type]
    return extractor_of(HubertLayer(folder, 2))


def streamed(stream: UnitStream, waveform: np.ndarray, cuts: list[int]) -> np.ndarray:
    pieces = np.split(waveform, sorted(cut % (len(waveform) + 1) for cut in cuts))
    return np.concatenate([*(stream.push(piece) for piece in pieces), stream.finish()])


@given(
    st.integers(0, 12_000),
    st.lists(st.integers(0, 12_000), max_size=20),
    st.integers(3, 40),
    st.integers(0, 3),
)
@settings(max_examples=15)
def test_mfcc_units_are_those_of_the_whole_recording(
    mfcc: UnitExtractor, num_samples: int, cuts: list[int], chunk_frames: int, seed: int
) -> None:
    waveform = speech(num_samples, seed)
    stream = UnitStream(mfcc, StreamPolicy.of(mfcc.extractor, chunk_frames=chunk_frames))
    assert stream.policy.exact
    np.testing.assert_array_equal(streamed(stream, waveform, cuts), mfcc(waveform))


@given(
    st.integers(0, 12_000),
    st.lists(st.integers(0, 12_000), max_size=20),
    st.integers(3, 30),
    st.integers(0, 30),
    st.integers(0, 20),
)
@settings(max_examples=10)
def test_units_of_a_layer_are_those_of_its_policy(
    layer: UnitExtractor, num_samples: int, cuts: list[int], chunk: int, past: int, future: int
) -> None:
    """The policy written out: a chunk is computed with what is around it, as a recording of its
    own.
    """
    waveform = speech(num_samples)
    total = int(MODEL_GRID.num_frames(num_samples))
    expected = [np.empty(0, np.int64)]
    for start in range(0, total, chunk):
        first = max(0, start - past)
        last = start + chunk + future
        units = layer(waveform[320 * first : 320 * (last - 1) + 400 if last <= total else None])
        expected.append(units[start - first : start - first + chunk])
    stream = UnitStream(layer, StreamPolicy(chunk, past, future, exact=False))
    np.testing.assert_array_equal(streamed(stream, waveform, cuts), np.concatenate(expected))


def test_the_latency_is_what_is_stated(mfcc: UnitExtractor, layer: UnitExtractor) -> None:
    """Sample by sample: no unit comes later than promised, and one comes exactly then."""
    stream = UnitStream(mfcc)
    assert stream.latency_seconds == pytest.approx(0.145)
    assert UnitStream(layer).latency_seconds == pytest.approx(1.005)
    given_units = 0
    latest = 0.0
    for arrived, sample in enumerate(speech(8_000), start=1):
        new = len(stream.push(np.array([sample])))
        for frame in range(given_units, given_units + new):
            latest = max(latest, (arrived - 320 * frame) / 16_000)
        given_units += new
    assert given_units > 10
    assert latest == pytest.approx(stream.latency_seconds)


def test_memory_is_bounded(mfcc: UnitExtractor) -> None:
    stream = UnitStream(mfcc)
    for _ in range(20):
        stream.push(speech(5_000))
        assert len(stream._samples) < 5_000


@pytest.mark.parametrize(
    "extractor",
    [
        LogMel(),
        Deltas(LogMel(), order=2),
        Splice(Mfcc(), left=3, right=1),
        Concatenate([Mfcc(), Splice(LogMel(), left=0, right=4)]),
    ],
)
def test_any_local_feature_streams_exactly(extractor: object) -> None:
    units = extractor_of(extractor)
    waveform = speech(20_000)
    assert UnitStream(units).policy.exact
    np.testing.assert_array_equal(
        streamed(UnitStream(units), waveform, [7, 400, 1000, 9999]), units(waveform)
    )


def test_receptive_field_of_features_that_are_not_local() -> None:
    assert receptive_field({"kind": "hubert_layer", "layer": 3}) is None
    assert (
        receptive_field(
            {"kind": "concatenate", "parts": [{"kind": "mfcc"}, {"kind": "hubert_layer"}]}
        )
        is None
    )
    assert receptive_field({"kind": "something new", "of": {"kind": "mfcc"}}) is None


def test_several_codebooks_stream_too() -> None:
    frames = Mfcc()(torch.from_numpy(speech(40_000, seed=1))[None])[0]
    features = Mfcc().fingerprint()
    parts = tuple(
        CodebookPart(
            name, columns, Codebook(frames[::10, slice(*columns)].clone(), features, MODEL_GRID)
        )
        for name, columns in (("static", (0, 13)), ("delta", (13, 39)))
    )
    units = UnitExtractor(Mfcc(), CodebookSet(parts, 39))
    waveform = speech(20_000)
    whole = units(waveform)
    assert whole.shape == (MODEL_GRID.num_frames(20_000), 2)
    np.testing.assert_array_equal(streamed(UnitStream(units), waveform, [1, 5000]), whole)
    assert all(isinstance(run.unit, tuple) and len(run.unit) == 2 for run in runs(whole))


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 40), max_size=8))
def test_runs_are_those_of_the_ids(ids: list[int], cuts: list[int]) -> None:
    found = runs(np.array(ids, dtype=np.int64))
    assert [unit for run in found for unit in [run.unit] * run.num_frames] == ids
    assert [run.start_frame for run in found] == np.cumsum([0, *(run.num_frames for run in found)])[
        :-1
    ].tolist()
    assert all(one.unit != other.unit for one, other in pairwise(found))
    stream = RunStream()
    pieces = np.split(np.array(ids, dtype=np.int64), sorted(cut % (len(ids) + 1) for cut in cuts))
    assert [*(run for piece in pieces for run in stream.push(piece)), *stream.finish()] == found


def test_seconds_of_runs() -> None:
    run = Run(3, start_frame=50, num_frames=5)
    assert (run.start_seconds(MODEL_GRID), run.num_seconds(MODEL_GRID)) == (1.0, pytest.approx(0.1))


def test_invalid_inputs_are_refused(mfcc: UnitExtractor) -> None:
    with pytest.raises(ArtefactError, match=r"log_mel"):
        UnitExtractor(LogMel(), mfcc.codebooks)
    with pytest.raises(ConfigError, match="at least one frame"):
        StreamPolicy(0, 1, 1, exact=True)
