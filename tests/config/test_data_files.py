"""Every conf/data/*.yaml composes as on the command line and builds its corpus."""

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
from hubert_pretrain.errors import ConfigError, DataError

FILES = sorted((compose.conf_folder() / "data").glob("*.yaml"))
NOT_A_CORPUS = {"custom"}
"""Files that need a class of the user."""
CORPORA = [path for path in FILES if path.stem not in NOT_A_CORPUS]


def composed(name: str, *overrides: str, fill: bool = True) -> Recipe:
    """The smoke recipe with this corpus. `fill`: mandatory values without a default get one."""
    compose.register()
    words = ["+recipe=smoke", f"data={name}", *overrides]
    with initialize_config_dir(config_dir=str(compose.conf_folder()), version_base="1.3"):
        config = hydra_compose("config", overrides=words)
    if fill:
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


@pytest.mark.parametrize("path", CORPORA, ids=lambda path: path.stem)
def test_every_file_builds_a_corpus_that_reports_missing_data(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the folder, and nothing is downloaded."""
    recipe = composed(path.stem)
    assert not recipe.data.download
    source = compose.build(recipe.data.corpus)
    if recipe.data.root is not None:
        monkeypatch.setattr(socket, "socket", None)
        with pytest.raises(DataError, match=r"/nowhere"):
            next(iter(source.utterances(tmp_path)))


def test_a_custom_corpus_needs_its_class() -> None:
    with pytest.raises(ConfigError, match=r"data\.corpus\._target_ has no value"):
        composed("custom", "data.root=/nowhere", fill=False)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_begins_with_a_description(path: Path) -> None:
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_lines_have_at_most_100_columns(path: Path) -> None:
    assert max(len(line) for line in path.read_text().splitlines()) <= 100


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_choice_is_documented(path: Path, repository: Path) -> None:
    assert f"`{path.stem}`" in (repository / "docs/corpora.md").read_text()
