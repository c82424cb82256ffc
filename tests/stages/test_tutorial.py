"""Every command of docs/tutorial.md runs, one after the other, with recipe `smoke` in place of
`demo`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hubert_pretrain.data.manifest import Manifest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("tutorial"),
]

ROOT = Path(__file__).resolve().parents[2]
DEMO_UTTERANCE = "amy-0003"
COMMANDS = re.compile(r"^(?:hubert-pretrain|cp) .*$", re.MULTILINE)


def commands() -> list[list[str]]:
    """The commands of the page, as words, for a run of smoke."""
    page = (ROOT / "docs" / "tutorial.md").read_text().replace("demo", "smoke")
    return [shlex.split(line, comments=True) for line in COMMANDS.findall(page)]


def run(words: list[str], cwd: Path) -> str:
    """The output of a command, which must end with 0."""
    if words[0] == "hubert-pretrain":
        words = [sys.executable, "-m", "hubert_pretrain", *words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr[-2000:]}"
    return done.stdout


def test_every_command_of_the_tutorial_runs(tmp_path: Path) -> None:
    given = commands()
    assert len(given) > 15
    outputs: dict[str, str] = {}
    utterance = ""
    for words in given:
        if any(DEMO_UTTERANCE in word for word in words):
            # Smoke has other voices.
            utterance = Manifest.open(tmp_path / "runs/smoke/prepare/manifest.arrow")[3].id
            speaker, _, _ = utterance.rpartition("-")
            words = [
                word.replace(f"amy/{DEMO_UTTERANCE}", f"{speaker}/{utterance}").replace(
                    DEMO_UTTERANCE, utterance
                )
                for word in words
            ]
        outputs[shlex.join(words)] = run(words, tmp_path)

    summary = outputs["hubert-pretrain +recipe=smoke"]
    assert "HuBERT loop: smoke" in summary
    assert "12 stages done" in summary
    assert any(text.startswith(f"{utterance}: ") for text in outputs.values())
    assert any("bit for bit" in text for text in outputs.values())
    assert (tmp_path / "hf" / "model.safetensors").is_file()
