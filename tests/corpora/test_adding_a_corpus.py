"""The example of docs/corpora.md, "Adding a corpus", runs as it is written there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.frames import SAMPLE_RATE

ROOT = "/corpora/readings"
"""`data.root` in the example."""


def test_the_example_is_complete(tmp_path: Path, repository: Path) -> None:
    page = (repository / "docs/corpora.md").read_text()
    section = page[page.index("## Adding a corpus") :]
    module, command = re.findall(r"```\w*\n(.*?)```", section, flags=re.DOTALL)
    (tmp_path / "readings.py").write_text(module)

    root = tmp_path / "corpus"
    table = "file,text\n"
    for speaker in ("anna", "ben", "carla"):
        for number in range(3):
            (root / speaker).mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).normal(0, 0.1, SAMPLE_RATE)
            soundfile.write(root / speaker / f"{number}.wav", noise, SAMPLE_RATE)
            table += f"{speaker}/{number}.wav,HELLO {number}\n"
    (root / "texts.csv").write_text(table)

    command = command.replace("\\\n", " ").replace(ROOT, str(root))
    python, *words = shlex.split(command)
    assert python == "python"
    subprocess.run(
        [sys.executable, *words, f"work_dir={tmp_path}/run", "data.workers=1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository)},
        check=True,
    )
    manifest = Corpus.open(tmp_path / "run/prepare").manifest
    assert len(manifest) == 9
    rows = [manifest[row] for row in range(len(manifest))]
    assert {row.speaker for row in rows if row.split == "test"} == {"anna"}
    assert {row.split for row in rows} == {"train", "valid", "test"}
    assert {row.text for row in rows if row.id.endswith("-2")} == {"HELLO 2"}
