"""The command `hubert-pretrain`: commands, recipes, help, and errors in one line."""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hubert_pretrain import __main__, run, tools
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.tools.command import command_parser, run_command

DEVELOPERS = {
    "api_reference",
    "architecture",
    "benchmarking",
    "census",
    "fault_campaign",
    "gpu_report",
    "learning_scores",
    "machine_speed",
    "mutation_run",
    "parity_table",
    "pictures",
    "plan_table",
    "roofline",
    "screenshots",
    "site",
}


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Exit code of `hubert-pretrain WORDS`."""
    monkeypatch.setattr(sys, "argv", ["hubert-pretrain", *words])
    with pytest.raises(SystemExit) as left:
        __main__.main()
    code = left.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.parametrize("spelling", ["extract-units", "extract_units"])
def test_a_command_takes_the_remaining_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spelling: str
) -> None:
    assert call(monkeypatch, spelling, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: hubert-pretrain {spelling} [-h]")
    assert "Extract discrete units" in shown
    assert call(monkeypatch, spelling, "nowhere", "x.wav") == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_everything_else_is_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(run, "main", lambda: seen.append(sys.argv[1:]))
    for words in (["+recipe=demo"], ["--cfg", "job"], ["stage=list", "+recipe=demo"]):
        monkeypatch.setattr(sys, "argv", ["hubert-pretrain", *words])
        __main__.main()
        assert seen[-1] == words
    monkeypatch.setattr(sys, "argv", ["hubert-pretrain", "run", "--help"])
    __main__.main()
    assert seen[-1] == ["--help"]


def test_a_mistyped_command_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "transcibe", "x.wav") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no command 'transcibe' (did you mean 'transcribe'?)")
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["-h"]])
def test_help_lists_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hubert-pretrain", *words])
    __main__.main()
    shown = capsys.readouterr().out
    for verb in tools.COMMANDS:
        assert f"\n  {verb.replace('_', '-')} " in shown
    assert "Transcribe speech of any length with a CTC model." in shown


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['hubert-pretrain', 'help']; "
        "from hubert_pretrain.__main__ import main; main(); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.endswith("\nFalse\n")


def test_help_of_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "help", "make-shards") == 0
    assert "usage: hubert-pretrain make-shards" in capsys.readouterr().out


@pytest.mark.parametrize("verb", tools.COMMANDS)
def test_every_command_has_the_same_form(verb: str) -> None:
    module = importlib.import_module(f"hubert_pretrain.tools.{verb}")
    summary, blank, example = (module.__doc__ or "").splitlines()[:3]
    assert summary.endswith(".")
    assert len(summary) <= 80
    assert blank == ""
    assert example.startswith(f"    hubert-pretrain {verb.replace('_', '-')} ")
    assert callable(module.main)


def test_a_command_starts_as_a_module() -> None:
    command = [sys.executable, "-m", "hubert_pretrain.tools.convert_targets", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Convert targets to fairseq's .km files" in shown


def test_the_wheel_takes_every_command_and_no_developers_program(repository: Path) -> None:
    project = (repository / "pyproject.toml").read_text()
    taken = set(re.findall(r'^    "tools/(\w+)\.py",$', project, re.MULTILINE))
    assert taken == set(tools.COMMANDS)
    others = {path.stem for path in (repository / "tools").glob("*.py")} - taken
    assert {name for name in others if not name.startswith("bench_")} == DEVELOPERS


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ArtefactError("x: is missing; make it"), 1, "error: x: is missing; make it\n"),
        (ConfigError("--y has no value"), 2, "error: --y has no value\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    def fail(options: argparse.Namespace) -> None:
        raise error

    assert run_command(fail, argparse.Namespace()) == code
    assert capsys.readouterr().err == message


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    def fail(options: argparse.Namespace) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(fail, argparse.Namespace())


def test_the_exit_code_is_that_of_the_command() -> None:
    options = command_parser("Summary.").parse_args([])
    assert run_command(lambda _: None, options) == 0
    assert run_command(lambda _: 3, options) == 3


def test_a_closed_pipe_ends_a_command_silently(repository: Path) -> None:
    code = (
        "import argparse, sys\n"
        "from hubert_pretrain.tools.command import run_command\n"
        "def talk(options):\n"
        "    while True: print('unit', flush=True)\n"
        "sys.exit(run_command(talk, argparse.Namespace()))\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"unit\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "cuda: torch sees no GPU on this machine; use --device cpu"),
        ("cuda:1", "cuda:1: torch sees no GPU"),
        ("gpu0", "'gpu0': expected cpu, cuda or cuda:N"),
    ],
)
@pytest.mark.parametrize("command", ["transcribe", "extract-units", "extract-features"])
def test_a_device_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    device: str,
    message: str,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert call(monkeypatch, command, "a", "b", "c", "--device", device) == 2
    assert f"error: argument --device: {message}" in capsys.readouterr().err
