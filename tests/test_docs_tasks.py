"""The worked examples of docs/finetuning.md on labels of frames, voices, several labels and numbers
run as they stand: recipes compose, their tasks are trained for some steps on tones, and what is
trained is evaluated and used by the commands.
"""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hubert_pretrain.config import compose
from hubert_pretrain.data.alignment import write_alignments
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.pipeline.workspace import Workspace
from tests.finetune.conftest import LETTER_SAMPLES, TINY, make_corpus, make_workspace, run_task

PAGE = Path(__file__).resolve().parent.parent / "docs" / "finetuning.md"
BLOCK = re.compile(r"```(python|yaml|)\n(.*?)```", re.DOTALL)
LABELS = {"events": ("a;b", "b"), "mood": ("0.1;3", "0.9;2")}


def section(heading: str) -> list[tuple[str, str]]:
    """The kinds and contents of the blocks under a heading."""
    text = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return BLOCK.findall(text)


def nodes(heading: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The tasks of the recipe under a heading, as they compose."""
    ((_, content),) = [block for block in section(heading) if block[0] == "yaml"]
    (folder / "recipe.yaml").write_text(content)
    overrides = compose.prepare([f"+recipe={folder / 'recipe.yaml'}", "data.root=."])
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(config_dir=str(compose.conf_folder()), version_base="1.3"):
        recipe = compose.to_recipe(hydra_compose("config", overrides), overrides)
    return {name: dict(each.task) for name, each in recipe.finetune.items()}


def corpus_of(folder: Path, **changes: Any) -> Corpus:
    """Tones, with the letter at each time as its phone: names as in CMU's dictionary."""
    corpus = make_corpus(folder, **changes)
    phones = {"A": "AH0", "B": "AX", "C": "S", "D": "K"}
    found = []
    for row in range(len(corpus.manifest)):
        text = corpus.manifest[row].text
        places = [(place * LETTER_SAMPLES, letter) for place, letter in enumerate(text)]
        found.append(
            (
                row,
                [
                    (phones[letter], start, start + LETTER_SAMPLES)
                    for start, letter in places
                    if letter != " "
                ],
            )
        )
    write_alignments(folder / "alignments.arrow", found)
    return Corpus.open(folder)


def train(root: Path, name: str, node: dict[str, Any], corpus: Corpus) -> Workspace:
    """Some steps of a task."""
    workspace = make_workspace(root / "runs" / name, corpus, TINY)
    facts = run_task(workspace, name, node, steps=2, valid_every_steps=2)
    workspace.finish(f"finetune/{name}", {"fingerprint": "f", "facts": facts})
    return workspace


def run_blocks(heading: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the commands and the Python of a section; returns what they print."""
    for kind, content in section(heading):
        if kind == "python":
            exec(compile(content, str(PAGE), "exec"), {})
        for line in content.splitlines() if not kind else ():
            program, command, *words = shlex.split(line)
            assert program == "hubert-pretrain"
            main = importlib.import_module(f"hubert_pretrain.tools.{command}").main
            assert main(words) == 0, line
    return capsys.readouterr().out


def test_phones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    heading = "Frames: the phone at each time"
    node = nodes(heading, tmp_path)["phones"]
    train(tmp_path, "phones", node, corpus_of(tmp_path / "corpus"))
    printed = run_blocks(heading, capsys)
    assert "frame_accuracy" in printed
    assert re.search(r"\| AH \| \d+", printed)
    assert not re.search(r"\| (AX|AH0) \| \d+", printed)


def test_voices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = make_corpus(tmp_path / "corpus")
    one, two, three = (corpus.manifest[int(row)] for row in corpus.manifest.rows("test")[:3])
    assert one.speaker == three.speaker != two.speaker
    lines = [f"1 {one.id}.wav {three.id}.wav", f"0 {one.id}.wav {two.id}.wav"]
    (tmp_path / "trials.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "recordings").mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE)
    for name in ("speech.wav", "recordings/other.wav"):
        soundfile.write(tmp_path / name, noise, SAMPLE_RATE)
    node = nodes("Speaker verification", tmp_path)["voices"]
    train(tmp_path, "voices", node, corpus)
    printed = run_blocks("Speaker verification", capsys)
    assert "trials: 2, targets: 1" in printed
    assert "recordings/other.wav\t1.0000\tsame" in printed
    assert re.search(r"^\(192,\) (1\.0|0\.99999)", printed, re.MULTILINE)


@pytest.mark.parametrize("name", list(LABELS))
def test_several_labels_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    node = nodes("Several labels, and numbers", tmp_path)[name]
    corpus = make_corpus(tmp_path / "corpus", label=lambda number: LABELS[name][number // 2 % 2])
    workspace = train(tmp_path, name, node, corpus)
    scores = workspace.artefact(f"finetune/{name}").facts
    assert scores.keys() >= ({"map"} if name == "events" else {"ccc", "pearson", "mse"})
