"""The command line as a user meets it: from any folder, fast where nothing is computed, one line
for each mistake.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import hubert_pretrain.run


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m hubert_pretrain.run WORDS` in a folder that is not the repository."""
    command = [sys.executable, "-m", "hubert_pretrain.run", *words]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "160"},
        check=False,
    )


HEAVY = ("torch", "lightning", "sklearn", "scipy", "torchaudio", "transformers")
"""Packages that cost seconds. docs/benchmarks.md has the times of the commands without them."""


def heavy_imports(*words: str, cwd: Path) -> tuple[set[str], str]:
    """Those of HEAVY that a command imports, and its output."""
    command = [sys.executable, "-X", "importtime", "-m", "hubert_pretrain.run", *words]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "hydra" in imported
    return imported & set(HEAVY), result.stdout


def test_help_is_fast_and_lists_what_can_be_chosen(tmp_path: Path) -> None:
    heavy, output = heavy_imports("--help", cwd=tmp_path)
    assert not heavy
    assert "base_ls960" in output
    assert "librispeech" in output
    assert not list(tmp_path.iterdir())


def test_list_shows_every_stage(tmp_path: Path) -> None:
    heavy, output = heavy_imports("+recipe=smoke", "stage=list", cwd=tmp_path)
    assert not heavy
    for stage in ("prepare", "it1/cluster", "it2/pretrain", "finetune/asr", "export"):
        assert stage in output
    assert "pending" in output
    assert not (tmp_path / "runs").exists()


def test_the_stages_get_the_whole_command_line(tmp_path: Path) -> None:
    """Also folders of configuration, which are options of Hydra."""
    folder = tmp_path / "größe"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "mine.yaml").write_text("defaults: [synthetic_small, _self_]\n")
    show = ["launch=slurm", "launch.dry_run=true"]
    for words in (["--config-dir", "größe"], [f"hydra.searchpath=[file://{folder}]"]):
        shown = run(*words, "+recipe=smoke", "data=mine", *show, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        line = next(line for line in shown.stdout.splitlines() if "hubert_pretrain.run" in line)
        command = shlex.split(line.partition("-m hubert_pretrain.run ")[2])
        command = [word for word in command if not word.startswith("stage=")]
        again = run(*command, "stage=list", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert "it2/pretrain" in again.stdout


MISTAKES = [
    ([], ["choose a recipe", "demo"]),
    (["+recipe=dmo"], ["dmo", "did you mean 'demo'"]),
    (["recipe=demo"], ["+recipe=<name>"]),
    (["+recipe=demo", "data=librispech"], ["librispech", "did you mean 'librispeech'"]),
    (
        ["+recipe=demo", "iterations.it1.pretrain.stepz=3"],
        ["stepz", "did you mean 'iterations.it1.pretrain.steps'"],
    ),
    (["+recipe=demo", "trainer.device=2"], ["trainer.device", "did you mean 'trainer.devices'"]),
    (
        ["+recipe=demo", "iterations.it1.pretrain.steps=many"],
        ["iterations.it1.pretrain.steps='many': expected a whole number"],
    ),
    (["+recipe=demo", "stage=it1/clusterr"], ["did you mean 'it1/cluster'"]),
    (["+recipe=demo", "data=librispeech"], ["data.root has no value: add data.root=..."]),
    (
        ["+recipe=demo", "data=folder", "data.root=null"],
        ["data.root has no value: add data.root=<folder"],
    ),
    (["+recipe=demo", "+data.corpus.minuts=3"], ["minuts", "did you mean 'minutes'"]),
    (
        ["+recipe=demo", "iterations.it2.features.checkpoint=it1/pretrian"],
        ["it1/pretrian", "did you mean 'it1/pretrain'"],
    ),
    (["+recipe=demo", "model.hidden_size=130"], ["model.hidden_size 130", "not a multiple"]),
    (
        ["+recipe=demo", "model.conv_kernel=[10,3]"],
        ["model.conv_dim has 7, model.conv_kernel has 2, model.conv_stride has 7 values"],
    ),
    (
        ["+recipe=demo", "iterations.it1.pretrain.micro_batch_seconds=7"],
        ["must be a whole multiple, e.g. micro_batch_seconds=8"],
    ),
    (
        ["+recipe=demo", "trainer.devices=7"],
        ["a step has 1 micro-batches, which 7 devices cannot share equally; use 1 devices"],
    ),
    (
        ["+recipe=demo", "iterations.it1.pretrain.min_seconds=0.1"],
        ["min_seconds=0.1 gives 4 frames, not more than one span"],
    ),
]


def main(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    folder: Path,
    *words: str,
) -> tuple[int, str]:
    """Exit code of the command in a folder, and what it writes to stderr."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(hubert_pretrain.run, "_exit_codes", [])
    monkeypatch.setattr(sys, "argv", ["hubert-pretrain", *words])
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        hubert_pretrain.run.main()
    assert isinstance(left.value.code, int)
    return left.value.code, capfd.readouterr().err.strip()


def test_several_mistakes_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A value of a wrong type, at which Hydra stops, is one of them."""
    words = ["+recipe=demo", "trainer.devices=auto", "trainer.fuse=0"]
    code, message = main(monkeypatch, capfd, tmp_path, *words)
    assert code == 2
    assert message.splitlines() == [
        "error: 2 faults of the configuration",
        "  trainer.devices='auto': expected a whole number",
        "  trainer.fuse='0': expected auto or a whole number above 0",
    ]


@pytest.mark.parametrize(
    ("words", "expected"), MISTAKES, ids=[" ".join(words) or "nothing" for words, _ in MISTAKES]
)
def test_a_mistake_is_one_line(
    words: list[str],
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The command in this process: a process of its own needs seconds."""
    last = "stage=all" if not any(word.startswith("stage") for word in words) else "seed=1"
    code, message = main(monkeypatch, capfd, tmp_path, *words, last)
    assert code == 2, message
    assert message.startswith("error: ")
    assert "\n" not in message, message
    for part in expected:
        assert part in message
    assert not (tmp_path / "runs").exists(), "a refused command leaves nothing behind"


def test_a_missing_corpus_is_one_line(tmp_path: Path) -> None:
    result = run("+recipe=demo", "data=librispeech", f"data.root={tmp_path}/nowhere", cwd=tmp_path)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path}/nowhere" in lines[0]
    assert not (tmp_path / "runs/demo-librispeech/prepare").exists()


def test_a_stage_whose_input_is_missing_says_what_to_run(tmp_path: Path) -> None:
    result = run("+recipe=smoke", "stage=it1/cluster", cwd=tmp_path)
    assert result.returncode == 1
    assert "run it first with stage=prepare" in result.stderr


@pytest.mark.parametrize("words", [["stage=list"], ["stage=nonsense"], ["nonsense=1"]])
def test_every_end_leaves_the_group(words: list[str], tmp_path: Path) -> None:
    """A rank that exits within its group may be aborted by a thread of gloo."""
    program = (
        "from hubert_pretrain import distributed, run\n"
        "distributed.leave_group = lambda: print('left the group')\n"
        "run.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "+recipe=smoke", f"work_dir={tmp_path}", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.endswith("left the group\n"), done.stderr
