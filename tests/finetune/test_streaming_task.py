"""Recognition of streams: a fine-tuning in chunks, its network, its exports, and the command."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hubert_pretrain.tools.transcribe import main

from hubert_pretrain.config.schema import DynamicChunksConfig
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.finetune.inference import SpeechRecognizer
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.model_card import Origin
from hubert_pretrain.interop.onnx import Deployed
from hubert_pretrain.interop.registry import export_all
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import WHOLE_UTTERANCE, ContextEncoder
from hubert_pretrain.pipeline.workspace import Workspace
from tests.finetune.conftest import TINY, make_corpus, make_workspace, run_task

CTC = {"_target_": "hubert_pretrain.finetune.ctc.CtcTask"}
STREAMS = {"chunk_frames": 10, "left_context_frames": 20, "normalize_waveform": False}
LAYER_NORM = dataclasses.replace(TINY, feat_extract_norm="layer", normalize_waveform=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("streams")
    return make_workspace(folder / "run", make_corpus(folder / "corpus"), LAYER_NORM)


@pytest.fixture(scope="module")
def lengths() -> list[Any]:
    """Chunk lengths of the passes of the fine-tuning."""
    return []


@pytest.fixture(scope="module")
def model(place: Workspace, lengths: list[Any]) -> Path:
    """The folder of a fine-tuning in chunks of 10 frames, of drawn lengths while it learns."""
    forward = ContextEncoder.forward

    def watched(self: ContextEncoder, x: torch.Tensor, **more: Any) -> Any:
        lengths.append(more.get("chunk_frames"))
        return forward(self, x, **more)

    chunks = DynamicChunksConfig([5, 10], full_context_probability=0.4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContextEncoder, "forward", watched)
        run_task(place, "asr", CTC, dynamic_chunks=chunks, **STREAMS)
    return place.partial_folder("finetune/asr")


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    random = np.random.default_rng(0)
    return (0.1 * random.standard_normal(40_000)).astype(np.float32)


def test_training_draws_chunks_and_the_result_streams(model: Path, lengths: list[Any]) -> None:
    assert set(lengths) == {WHOLE_UTTERANCE, 5, 10, None}
    config = load_model(model).model.config
    assert (config.chunk_frames, config.left_context_frames) == (10, 20)
    assert not config.normalize_waveform
    assert load_model(model, chunk_frames=None).model.config.chunk_frames is None


def test_blocks_of_any_size_give_the_logits_of_the_network(
    model: Path, waveform: np.ndarray
) -> None:
    recogniser = SpeechRecognizer.load(model)
    loaded = load_model(model)
    head: Any = loaded.build_head()
    with torch.inference_mode():
        whole = head(loaded.model(torch.from_numpy(waveform)[None]).last)[0].log_softmax(-1)
    for size in (1000, 7777, 40_000):
        blocks = iter(np.array_split(waveform, range(size, len(waveform), size)))
        parts = list(recogniser.log_probabilities(blocks))
        assert [len(part) for part in parts[:-1]] == [10] * (len(parts) - 1)
        np.testing.assert_allclose(np.concatenate(parts), whole.numpy(), atol=1e-4)
    text = recogniser.transcribe(torch.from_numpy(waveform))
    words = recogniser.words(iter(np.array_split(waveform, 9)))
    assert [word.text for word in words] == text.split()
    # Each part comes when its audio is there: 10 frames need 3,280 samples.
    taken: list[int] = []

    def microphone() -> Any:
        for block in np.array_split(waveform, 100):
            taken.append(len(block))
            yield block

    next(recogniser.log_probabilities(microphone()))
    assert sum(taken) == 3600


def test_bad_audio_is_refused(model: Path) -> None:
    recogniser = SpeechRecognizer.load(model)
    for wave, message in (
        (np.zeros(100), "has 100 samples, expected at least 400"),
        (np.zeros(8000), "every sample is the same"),
        (np.full(8000, np.nan), "NaN or infinite"),
    ):
        with pytest.raises(DataError, match=message):
            recogniser.recognise(iter([wave.astype(np.float32)]))
    recogniser.head = CTCHead(16, 8, lstm_layers=1, lstm_size=4)
    with pytest.raises(ConfigError, match="chunk_frames=10 with a head of bidirectional LSTM"):
        recogniser.recognise(torch.randn(8000))


def test_the_command_streams_from_a_microphone(
    model: Path,
    waveform: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pcm = (waveform * 32767).astype("<i2")
    soundfile.write(tmp_path / "speech.wav", pcm, 16_000)
    assert main([str(model), str(tmp_path / "speech.wav"), "--stream"]) == 0
    shown = capsys.readouterr()
    words = [line.split("\t")[1:] for line in shown.out.splitlines()]
    assert "chunks of 10 frames (0.2 s)" in shown.err
    assert "at most 0.205 s" in shown.err
    expected = SpeechRecognizer.load(model).transcribe(tmp_path / "speech.wav")
    assert [word for _, word in words] == expected.split()
    assert words
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": io.BytesIO(pcm.tobytes())}))
    assert main([str(model), "-", "--stream"]) == 0
    again = [line.split("\t")[1:] for line in capsys.readouterr().out.splitlines()]
    assert again == words
    # The same checkpoint with another chunk, and offline.
    fields = ["--set", "chunk_frames=25", "left_context_frames=null"]
    assert main([str(model), str(tmp_path / "speech.wav"), *fields]) == 0
    assert "chunks of 25 frames (0.5 s), attention sees the chunk and everything" in (
        capsys.readouterr().err
    )
    assert main([str(model), str(tmp_path / "speech.wav"), "--set", "chunk_frames=null"]) == 0
    assert "streaming" not in capsys.readouterr().err


def test_an_export_says_that_it_computes_whole_utterances(model: Path, tmp_path: Path) -> None:
    from transformers import HubertForCTC

    origins = {"finetune/asr": Origin("asr")}
    export = export_all("huggingface", {"finetune/asr": model}, tmp_path, origins)["finetune/asr"]
    assert export.report.max_difference < 1e-4
    assert any("streams in chunks of 10 frames, and the export computes" in x for x in export.notes)
    folder = tmp_path / export.name
    assert "Streaming: this network streams in chunks of 10" in (folder / "README.md").read_text()
    ours = load_checkpoint(folder)
    assert ours.model.config.chunk_frames == 10
    speech = torch.randn(1, 8000)
    head: Any = ours.build_head()
    with torch.inference_mode():
        offline = head(ours.model(speech, chunk_frames=WHOLE_UTTERANCE).last)
        streamed = head(ours.model(speech).last)
        found = HubertForCTC.from_pretrained(folder).eval()(speech).logits
        (graph,) = Deployed(ours)(speech)
    torch.testing.assert_close(found, offline, rtol=1e-4, atol=1e-5)
    assert torch.equal(graph, offline)
    assert not torch.allclose(found, streamed, atol=1e-3)


def test_checkpoints_that_cannot_stream_are_refused(place: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"set finetune.asr2.normalize_waveform=false"):
        run_task(place, "asr2", CTC, chunk_frames=10)
    with pytest.raises(ConfigError, match=r"set finetune.asr3.normalize_waveform=false"):
        run_task(place, "asr3", CTC, dynamic_chunks=DynamicChunksConfig([5]))
