"""Turns, ratios and output of the benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from hubert_pretrain.tools import benchmarking


def test_sides_take_turns_and_warm_up_turns_do_not_count() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    found = benchmarking.in_turns({"ours": lambda: side("ours"), "peer": lambda: side("peer")}, 2)
    assert calls == ["ours", "peer"] * 3
    assert found == {"ours": [3.0, 5.0], "peer": [4.0, 6.0]}


def test_the_ratio_is_that_of_each_turn_not_of_the_medians() -> None:
    found = benchmarking.compared([10.0, 30.0, 20.0], [1.0, 10.0, 4.0])
    assert (found["ours"], found["peer"]) == (20.0, 4.0)
    assert (found["ratio_min"], found["ratio"], found["ratio_max"]) == (3.0, 5.0, 10.0)


def test_processor_time_counts_the_processes_that_were_started() -> None:
    code = "import time\nwhile time.process_time() < 0.5: pass"
    before = benchmarking.cpu_seconds()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert benchmarking.cpu_seconds() - before >= 0.49


@pytest.mark.parametrize("uniform", [0.0, 0.05, 0.1, 0.55, 0.999])
def test_lengths_follow_the_deciles(uniform: float) -> None:
    expected = np.interp(uniform, np.linspace(0, 1, 11), benchmarking.LIBRISPEECH_SECONDS)
    assert benchmarking.librispeech_seconds(uniform) == pytest.approx(expected)


def test_the_line_of_json_has_short_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    benchmarking.print_json(
        "none", {"row": {"ours": 1.23456789, "frames": 123456789, "peers": {"a": 2 / 3}}}
    )
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == {"row": {"ours": 1.235, "frames": 123456789, "peers": {"a": 0.6667}}}
    assert found["bench"] == "none"
    assert "torch" in found["machine"]
