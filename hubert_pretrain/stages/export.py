"""Stage `export`: checkpoints -> folders that others load, each compared with what it was made
from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.files import write_json
from hubert_pretrain.interop.compare import Report
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.registry import export_format
from hubert_pretrain.pipeline.workspace import Workspace


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Writes each checkpoint of the recipe into a folder named like its stage, and `report.json`
    with all differences beside them.
    """
    form = export_format(recipe.export.format)
    reports: dict[str, Report] = {}
    names: dict[str, str] = {}
    for reference in recipe.export.checkpoints:
        source = workspace.resolve(reference).path
        loaded = load_checkpoint(source)
        name = "/".join(source.parts[-2:])  # it2/pretrain, finetune/asr, also of another run
        if name in names.values():
            raise ConfigError(
                f"export.checkpoints names two folders that end in {name}; export one of them in a run of its own"
            )
        names[reference] = name
        form.write(folder / name / form.file, loaded)
        reports[reference], _ = form.check(folder / name / form.file, loaded)
    write_json(
        folder / "report.json",
        {reference: report.differences for reference, report in reports.items()},
    )
    final = workspace.folder(stage)
    folders = {reference: str(final / name) for reference, name in names.items()}
    return {
        "path": next(iter(folders.values())),
        "folders": folders,
        "max_difference": {
            reference: report.max_difference for reference, report in reports.items()
        },
    }
