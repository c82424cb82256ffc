"""docs/configuration.md is what the schema says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hubert_pretrain.config import nodes, reference, schema
from hubert_pretrain.model.config import HubertConfig


def test_the_page_is_up_to_date(repository: Path) -> None:
    """Otherwise: python -m hubert_pretrain.config.reference > docs/configuration.md"""
    assert (repository / "docs/configuration.md").read_text() == reference.page()


def test_every_key_has_a_description() -> None:
    sections = [section for _, section in reference.sections("", schema.Recipe)]
    assert HubertConfig in sections
    for section in sections:
        described = reference.descriptions(section)
        assert not [
            f"{section.__name__}.{each.name}"
            for each in dataclasses.fields(section)
            if not described[each.name]
        ]


def test_names_allowed_values_units_and_fingerprints() -> None:
    page = reference.page()
    assert (
        "| `data.max_bad_fraction` | float | 0.001 | a share from 0 to 1 | A larger share of "
        "unreadable files is an error; fewer are quarantined. No fingerprint. |" in page
    )
    assert "| `iterations.it1.pretrain.steps` | int | **required** | a number above 0 |" in page
    assert "| `trainer.strategy` | str | auto | auto, ddp, fsdp, hsdp |" in page
    assert "`launch.stages.pretrain.cpus`" in page
    assert "Unit: dB." in page


def test_every_argument_of_a_node_has_a_description() -> None:
    for target in reference.targets():
        signature = nodes.signature_of(target)
        assert signature is not None
        described = reference.argument_descriptions(signature.docstring)
        assert set(signature.arguments) <= set(described), target


def test_arguments_of_classes() -> None:
    page = reference.page()
    assert "### `corpora.folder.Folder`" in page
    assert (
        "| `columns` | Mapping[str, str] \\| null | null |  | our name -> the table's name" in page
    )
    assert "| `factors` | Sequence[float] | [0.9, 1.0, 1.1] |  | speeds" in page
    assert "| `reduction` | str | sum | sum, mean |" in page
    assert "| `final_dropout` | float | 0.0 | a share from 0 up to, but not, 1 |" in page
