"""Every conf/data/*.yaml composes through the real command line, and its corpus is built: no
configuration rots unnoticed.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import DataError

FILES = sorted((compose.conf_folder() / "data").glob("*.yaml"))
OURS = {
    *("librispeech", "librispeech_100", "librispeech_960", "librispeech_mini"),
    *("librilight", "librilight_60k", "librilight_10h", "librilight_1h", "librilight_10min"),
    *(
        "common_voice",
        "voxpopuli",
        "voxpopuli_asr",
        "timit",
        "speech_commands",
        "speech_commands_12",
    ),
    *(
        "fluent_speech_commands",
        "voxceleb1",
        "iemocap",
        "fsdd",
        "folder",
        "synthetic",
        "synthetic_small",
    ),
}


def composed(name: str, *overrides: str) -> Recipe:
    """A recipe with this corpus, as the command line makes it. Values that a user must give are
    given.
    """
    compose.register()
    words = ["+recipe=smoke", f"data={name}", *overrides]
    with initialize_config_dir(config_dir=str(compose.conf_folder()), version_base="1.3"):
        config = hydra_compose("config", overrides=words)
    for key in missing_keys(OmegaConf.to_container(config.data), "data"):
        OmegaConf.update(config, key, "/nowhere")
    return compose.to_recipe(config, words)


def missing_keys(tree: Any, name: str) -> list[str]:
    """Dotted names of the values that are `???`."""
    if isinstance(tree, dict):
        return [
            key for child, value in tree.items() for key in missing_keys(value, f"{name}.{child}")
        ]
    return [name] if tree == "???" else []


def test_there_are_all_corpora() -> None:
    assert {path.stem for path in FILES} >= OURS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_corpus_is_chosen_by_its_name(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is not there is an error that says so, and never a download that nobody asked
    for.
    """
    recipe = composed(path.stem)
    assert not recipe.data.download
    source = compose.build(recipe.data.corpus)
    if recipe.data.root is not None:
        monkeypatch.setattr(socket, "socket", None)
        with pytest.raises(DataError, match=r"/nowhere"):
            next(iter(source.utterances(tmp_path)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_short_and_says_what_it_is(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 24


@pytest.mark.parametrize("name", sorted(OURS - {"synthetic", "synthetic_small"}))
def test_documented(name: str, repository: Path) -> None:
    assert f"`{name}`" in (repository / "docs/corpora.md").read_text()
