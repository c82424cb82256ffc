"""Recipes are read when a command line names them, and again when they change."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.errors import ConfigError


def write(folder: Path, name: str, content: str) -> None:
    file = folder / "recipes" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def test_only_the_named_recipes_and_their_parents_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parents are named in each way that Hydra knows; what nobody names may be broken."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "lab/first", "defaults: [/recipe/smoke, _self_]\nname: first\nseed: 5\n")
    write(tmp_path, "lab/second", "defaults: [lab/first, _self_]\nname: second\n")
    write(
        tmp_path, "third/recipe", "defaults: [{/recipe@_global_: lab/second}, _self_]\nname: third"
    )
    write(tmp_path, "broken/recipe", "name: [")
    read = []
    monkeypatch.setattr(
        compose, "_recipe_node", lambda path, chosen: read.append(path) or node(path, chosen)
    )
    assert compose.recipe_of(["+recipe=third"]).seed == 5
    local = [
        str(path.relative_to(tmp_path / "recipes"))
        for path in read
        if path.is_relative_to(tmp_path)
    ]
    assert sorted(local) == ["lab/first.yaml", "lab/second.yaml", "third/recipe.yaml"]
    read.clear()
    assert compose.recipe_of(["+recipe=third", "seed=7"]).seed == 7
    assert read == []
    write(tmp_path, "lab/first", "defaults: [/recipe/smoke, _self_]\nname: first\nseed: 60\n")
    assert compose.recipe_of(["+recipe=third"]).seed == 60
    assert [path.name for path in read] == ["first.yaml"]
    with pytest.raises(ConfigError, match=r"broken/recipe.yaml: no readable YAML"):
        compose.recipe_of(["+recipe=broken"])


node = compose._recipe_node
