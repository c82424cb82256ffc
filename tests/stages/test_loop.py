"""The whole loop on the smoke recipe: every stage, skipped when done, resumed after kill -9 as if
nothing had happened.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

# One worker runs all of this file, so that the loop is run once.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("loop"),
]

STAGES = [
    "prepare",
    "it1/cluster",
    "it1/label",
    "it1/pretrain",
    "it2/cluster",
    "it2/label",
    "it2/pretrain",
    "finetune/asr",
    "finetune/speakers",
    "evaluate/asr/test",
    "evaluate/speakers/test",
    "export",
]
UNDER_WAY = {
    "prepare": "audio/**/*.wav",
    "cluster": "partial.json",
    "label": "targets.bin",
    "pretrain": "checkpoints/*.sha256",
    "finetune": "checkpoints/*.sha256",
    "evaluate": "partial.json",
    "export": "finetune/*",
}
"""Content of a stage's partial folder when its work has begun but is far from over (k-means and
evaluations leave nothing before their end).
"""
SAME_AFTER_A_KILL = [
    "manifest.arrow",
    "alignments.arrow",
    "codebook.safetensors",
    "targets.bin",
    "model.safetensors",
    "hypotheses.tsv",
]


def start(work_dir: Path, *words: str) -> subprocess.Popen[str]:
    """The user's command, in a process group of its own."""
    command = [
        sys.executable,
        "-m",
        "hubert_pretrain.run",
        "+recipe=smoke",
        f"work_dir={work_dir}",
        *words,
    ]
    return subprocess.Popen(
        command,
        cwd=work_dir.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(work_dir: Path, *words: str) -> str:
    process = start(work_dir, *words)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def meta(work_dir: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((work_dir / stage / "meta.json").read_text()))


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    """An undisturbed run of smoke: its folder, its output, its seconds."""
    work_dir = tmp_path_factory.mktemp("smoke") / "run"
    started = time.monotonic()
    output = finish(work_dir)
    return work_dir, output, time.monotonic() - started


def test_every_stage_is_done(loop: tuple[Path, str, float]) -> None:
    work_dir, output, _ = loop
    for stage in STAGES:
        assert (work_dir / stage / "meta.json").is_file(), stage
    assert not list(work_dir.rglob("*.partial"))
    assert "HuBERT loop: smoke" in output
    assert {path.name for path in work_dir.iterdir()} == {
        *{stage.split("/")[0] for stage in STAGES},
        *("summary.json", "recipe.yaml", "report.html", ".cache", ".locks"),
    }
    assert f"report: {work_dir / 'report.html'}" in output
    assert '"missing": []' in (work_dir / "report.html").read_text()


def test_nothing_is_written_outside_the_work_dir(loop: tuple[Path, str, float]) -> None:
    work_dir, _, _ = loop
    assert [path.name for path in work_dir.parent.iterdir()] == [work_dir.name]


def test_summary_holds_what_was_measured(loop: tuple[Path, str, float]) -> None:
    work_dir, _, _ = loop
    summary = json.loads((work_dir / "summary.json").read_text())
    assert summary["recipe"] == "smoke"
    assert [(stage["name"], stage["state"]) for stage in summary["stages"]] == [
        (name, "done") for name in STAGES
    ]
    assert all(stage["seconds"] >= 0 for stage in summary["stages"])
    for name in ("it1", "it2"):
        facts = summary["iterations"][name]
        assert facts["n_clusters"] == 50
        assert 0 < facts["pnmi"] < 1
        assert 0 < facts["phone_purity"] < 1
        assert 0 < facts["cluster_purity"] < 1
        assert 0 < facts["unigram_entropy_nats"] < 4
        assert facts["masked_loss_nats"] > 0
        assert 0 <= facts["masked_accuracy"] <= 1
        assert 0 <= facts["unmasked_accuracy"] <= 1
        assert facts["inertia"] > 0
    for scores in (summary["finetune"]["asr"], summary["evaluate"]["asr/test"]):
        assert set(scores) >= {"wer", "cer"}
    low, high = summary["evaluate"]["speakers/test"]["intervals"]["accuracy"]
    assert 0 <= low <= summary["evaluate"]["speakers/test"]["accuracy"] <= high <= 1
    assert (Path(summary["export"]["path"]) / "config.json").is_file()


def test_rerun_skips_everything(loop: tuple[Path, str, float]) -> None:
    work_dir, _, _ = loop
    before = {stage: (work_dir / stage / "meta.json").stat().st_mtime_ns for stage in STAGES}
    output = finish(work_dir)
    assert output.count("done before") == len(STAGES)
    assert before == {
        stage: (work_dir / stage / "meta.json").stat().st_mtime_ns for stage in STAGES
    }


def test_another_configuration_is_refused_by_name(loop: tuple[Path, str, float]) -> None:
    work_dir, _, _ = loop
    process = start(work_dir, "iterations.it1.clustering.n_clusters=20")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "clustering.n_clusters: 50 -> 20" in output
    assert (work_dir / "it1/cluster/meta.json").is_file()


def test_hardware_and_frequency_of_logging_are_no_other_configuration(
    loop: tuple[Path, str, float],
) -> None:
    work_dir, _, _ = loop
    output = finish(
        work_dir,
        "trainer.loader_workers=1",
        "iterations.it1.pretrain.log_every_steps=3",
        "data.workers=1",
    )
    assert output.count("done before") == len(STAGES)


def test_exported_model_transcribes_as_our_own_decoder(loop: tuple[Path, str, float]) -> None:
    import soundfile
    from transformers import pipeline

    work_dir, _, _ = loop
    hypotheses = [
        line.split("\t")
        for line in (work_dir / "evaluate/asr/test/hypotheses.tsv").read_text().splitlines()[1:]
    ]
    recogniser = pipeline(
        "automatic-speech-recognition", model=str(work_dir / "export/finetune/asr")
    )
    from hubert_pretrain.data.corpus import Corpus

    corpus = Corpus.open(work_dir / "prepare")
    paths = {
        corpus.manifest[int(row)].id: corpus.manifest[int(row)].path
        for row in corpus.manifest.rows("test")
    }
    for utterance, _, hypothesis, *_ in hypotheses[:5]:
        audio, rate = soundfile.read(paths[utterance], dtype="float32")
        assert recogniser({"raw": audio, "sampling_rate": rate})["text"] == hypothesis


@pytest.fixture(scope="module")
def disturbed(loop: tuple[Path, str, float]) -> Path:
    """The same run, killed with -9 in the middle of every stage: the driver in odd stages, the
    stage's own process in even ones.
    """
    work_dir = loop[0].parent.parent / "disturbed" / "run"
    work_dir.parent.mkdir(exist_ok=True)
    for number, stage in enumerate(STAGES):
        process = start(work_dir)
        evidence = UNDER_WAY[next(verb for verb in UNDER_WAY if verb in stage)]
        deadline = time.monotonic() + 300
        while not any((work_dir / f"{stage}.partial").glob(evidence)):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"{stage} never got so far as to leave {evidence}"
            time.sleep(0.005)
        victim = process.pid if number % 2 else _child(process.pid)
        os.kill(victim, signal.SIGKILL)
        output, _ = process.communicate(timeout=600)
        assert process.returncode != 0, output
        assert not (work_dir / stage / "meta.json").exists(), (
            f"{stage} was over before it was killed"
        )
        assert number % 2 or "the same command resumes it" in output
    finish(work_dir)
    return work_dir


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_resumed_equals_undisturbed(
    stage: str, loop: tuple[Path, str, float], disturbed: Path
) -> None:
    before = meta(loop[0], stage)
    after = meta(disturbed, stage)
    timeless = [
        {key: value for key, value in facts.items() if "second" not in key}
        for facts in (before["facts"], after["facts"])
    ]
    if stage != "export":  # its facts are paths
        assert timeless[0] == timeless[1]
    hashes = [
        {name: value for name, value in made["sha256"].items() if name in SAME_AFTER_A_KILL}
        for made in (before, after)
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0] or stage in ("export", "finetune/speakers", "evaluate/speakers/test")


def _child(pid: int) -> int:
    """The process of the stage that a driver runs."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0])
