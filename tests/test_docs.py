"""The Python of README.md runs as it stands, against a tiny run, and commands in the docs exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.stages.units import build_features, save_imported
from hubert_pretrain.tools import COMMANDS

SECTIONS = [
    "Load any checkpoint",
    "Hidden states of a layer",
    "Units of a recording",
    "Transcription",
]
SAMPLES_AT_8_KHZ = 8000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `speech.wav` and `runs/demo`, as the documents suppose."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("place")
    run = folder / "runs" / "demo"
    sizes = {
        "conv_dim": [8] * 7,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = HubertConfig(
        **sizes,  # type: ignore[arg-type]
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    for stage in ("it1/pretrain", "it2/pretrain"):
        save_model(run / stage, Hubert(config), head=CodebookHead(16, 8, 5))
    vocabulary = Vocabulary.of_texts(["ABC"])
    save_model(
        run / "finetune/asr",
        Hubert(config),
        head=CTCHead(16, len(vocabulary)),
        extra={"vocabulary": list(vocabulary.symbols)},
    )
    node = {
        "_target_": "hubert_pretrain.features.hubert_layer.HubertLayer",
        "checkpoint": str(run / "it1/pretrain"),
        "layer": 2,
        "center_utterances": True,
    }
    features = build_features(node).fingerprint()
    codebook = Codebook(torch.randn(5, 16), features, MODEL_GRID)
    save_imported(CodebookSet.of(codebook), node, run / "it2/cluster")
    soundfile.write(
        folder / "speech.wav", np.random.default_rng(0).normal(0, 0.1, SAMPLES_AT_8_KHZ), 8000
    )
    return folder


def snippets(document: Path) -> dict[str, str]:
    """The Python under each heading."""
    found: dict[str, str] = {}
    for section in document.read_text().split("\n### ")[1:]:
        heading = section.split("\n")[0]
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL)):
            found[heading + f" ({number})" * bool(number)] = block
    return found


@pytest.fixture
def ran(place: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(section: str) -> dict[str, Any]:
        monkeypatch.chdir(place)
        variables: dict[str, Any] = {}
        exec(snippets(repository / "README.md")[section], variables)
        return variables

    return run


def test_there_are_no_others_and_each_is_short(repository: Path) -> None:
    found = snippets(repository / "README.md")
    assert list(found) == SECTIONS
    for section, code in found.items():
        assert len([line for line in code.splitlines() if line.strip()]) <= 6, section


def test_load(ran: Any, capsys: pytest.CaptureFixture[str]) -> None:
    variables = ran("Load any checkpoint")
    assert capsys.readouterr().out == "pretrain 3 layers\n"
    assert variables["head"](torch.randn(2, 16)).shape == (2, 5)


def test_hidden_states(ran: Any) -> None:
    variables = ran("Hidden states of a layer")
    states = variables["states"]
    frames = MODEL_GRID.num_frames(2 * SAMPLES_AT_8_KHZ)
    assert [tuple(state.shape) for state in states] == [(1, frames, 16)] * 3
    assert torch.equal(variables["model"](variables["waveform"], layers=2).last, states[1])


def test_units(ran: Any, place: Path) -> None:
    variables = ran("Units of a recording")
    frames = HubertLayer(place / "runs/demo/it1/pretrain", 2, center_utterances=True)(
        torch.from_numpy(variables["audio"].read("speech.wav"))[None]
    )
    codebook = Codebook.load(place / "runs/demo/it2/cluster")
    assert len(variables["units"]) == MODEL_GRID.num_frames(2 * SAMPLES_AT_8_KHZ)
    assert variables["units"] == codebook.assign(frames)[0].tolist()


def test_transcription(ran: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = ran("Transcription")["recognise"].transcribe("speech.wav")
    assert capsys.readouterr().out == f"{text}\n"


def commands_in_the_docs(repository: Path) -> list[tuple[str, str, str]]:
    """(page, command, its words) of every `hubert-pretrain COMMAND` in README.md and docs/."""
    found = []
    for page in [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]:
        text = page.read_text().replace("\\\n", " ")
        for words in re.findall(r"hubert-pretrain ([a-z][^\n`#|>]*)", text):
            found.append((page.name, words.split()[0], words))
    return found


def test_commands_in_the_docs_exist_with_their_options(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breaches = []
    for page, command, words in commands_in_the_docs(repository):
        verb = command.replace("-", "_")
        if verb not in {*COMMANDS, "help", "run"}:
            breaches.append(f"{page}: hubert-pretrain {command}")
        elif verb in COMMANDS:
            with pytest.raises(SystemExit):
                importlib.import_module(f"hubert_pretrain.tools.{verb}").main(["--help"])
            known = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
            unknown = set(re.findall(r"--[a-z0-9-]+", words)) - known
            breaches += [f"{page}: hubert-pretrain {command} {option}" for option in unknown]
    assert not breaches


def test_links_of_the_docs_lead_somewhere(repository: Path) -> None:
    breaches = []
    for page in [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                breaches.append(f"{page.name}: {target}")
    assert not breaches
