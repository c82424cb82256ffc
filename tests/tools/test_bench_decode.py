"""tools/bench_decode.py: each row runs at a small size, and both sides agree."""

from __future__ import annotations

import json

import pytest
from hubert_pretrain.tools.bench_decode import main

pytestmark = pytest.mark.slow


def test_both_sides_read_the_same_samples_and_write_the_same_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    main(["--size", "tiny", "--minutes", "0.1", "--pairs", "1"])
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["bench"] == "decode"
    assert (
        list(found["rows"])
        == [
            *("read_flac", "read_wav", "read_ogg", "greedy"),
            *("beam", "beam_processes", "lexicon", "transcribe"),
        ]
        == [line.split(":")[0] for line in lines]
    )
    for name, row in found["rows"].items():
        # The searches for words prune different prefixes: they differ here and there.
        assert row["equal"] == 1.0 or name == "lexicon", name
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"], rel=0.01)


def test_a_row_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["read_aiff"])
    assert "no row 'read_aiff'; choose from read_flac" in capsys.readouterr().err
