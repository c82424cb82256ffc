"""Exit codes of errors, and suggestions for misspelt names."""

from __future__ import annotations

from hubert_pretrain import errors


def test_exit_codes_tell_kinds_of_errors_apart() -> None:
    codes = {
        kind.__name__: kind.exit_code
        for kind in errors.HubertPretrainError.__subclasses__()
        if kind.__module__ == errors.__name__
    }
    assert codes == {
        "ConfigError": 2,
        "DataError": 1,
        "ArtefactError": 1,
        "Preempted": 75,
        "Interrupted": 130,
    }


def test_the_nearest_name_is_suggested_if_there_is_one() -> None:
    assert errors.did_you_mean("flcs", ["flac", "pcm"]) == " (did you mean 'flac'?)"
    assert errors.did_you_mean("zzz", ["flac", "pcm"]) == ""
    assert errors.did_you_mean("x", []) == ""
