"""docs/configuration.md is what the schema says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hubert_pretrain.config import reference, schema
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
    assert "| `trainer.strategy` | str | auto | auto, ddp, fsdp |" in page
    assert "`launch.stages.pretrain.cpus`" in page
    assert "Unit: dB." in page
