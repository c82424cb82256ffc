"""The worked example of docs/decoding.md runs as it stands, against a model of random weights."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from hubert_pretrain.config import compose
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert
from tests.finetune.conftest import TINY, make_corpus

PAGE = Path(__file__).resolve().parent.parent / "docs" / "decoding.md"
BLOCK = re.compile(r"```(python|yaml|)\n(.*?)```", re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `speech.wav` and `runs/demo`, as the page supposes."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.of_texts(["ABCDEFGHIJKLMNOPQRSTUVWXYZ"])
    run = tmp_path / "runs" / "demo"
    extra = {"vocabulary": list(vocabulary.symbols), "text_rules": {"case": "upper"}}
    head = CTCHead(16, len(vocabulary))
    save_model(run / "finetune" / "asr", Hubert(TINY), head=head, extra=extra)
    make_corpus(run / "prepare")
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE)
    soundfile.write(tmp_path / "speech.wav", noise, SAMPLE_RATE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_and_snippet_of_the_page_runs(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []
    for kind, content in BLOCK.findall(PAGE.read_text()):
        if kind == "python":
            exec(compile(content, str(PAGE), "exec"), {})
            ran.append("python")
        for line in content.splitlines() if not kind else ():
            program, command, *words = shlex.split(line)
            assert program == "hubert-pretrain"
            main = importlib.import_module(f"hubert_pretrain.tools.{command}").main
            assert main(words) == 0, line
            ran.append(command)
    assert ran.count("python") == 2
    assert ran.count("transcribe") == 5
    assert ran.count("align") == 2
    assert (place / "lm.arpa").is_file()
    assert (place / "alignments" / "alignments.ctm").stat().st_size > 0
    assert capsys.readouterr().out.count("speech.wav") >= 5


def test_the_recipe_of_the_page_is_accepted(place: Path) -> None:
    (content,) = [text for kind, text in BLOCK.findall(PAGE.read_text()) if kind == "yaml"]
    recipe: Any = OmegaConf.to_container(OmegaConf.create(content))
    given = recipe["finetune"]["asr"]["decoding"]
    key = "finetune.asr.decoding"
    words = [f"{key}.{name}={value}".replace(" ", "") for name, value in given.items()]
    decoding = compose.recipe_of(["+recipe=demo", *words]).finetune["asr"].decoding
    assert {key: getattr(decoding, key) for key in given} == given


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("kind=bean", "finetune.asr.decoding.kind='bean': expected one of greedy, beam, lexicon"),
        ("lm=none.arpa", "finetune.asr.decoding.lm=none.arpa with finetune.asr.decoding.kind=gr"),
    ],
)
def test_the_door_refuses_settings_that_cannot_be(place: Path, word: str, message: str) -> None:
    with pytest.raises(Exception, match=re.escape(message)):
        compose.recipe_of(["+recipe=demo", f"finetune.asr.decoding.{word}"])
