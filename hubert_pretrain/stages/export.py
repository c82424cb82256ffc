"""Stage `export`: checkpoints -> the files of another project, each compared with its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.files import write_json
from hubert_pretrain.finetune.scoring import card_of
from hubert_pretrain.interop.registry import export_all
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.lineage import origin


def open_exports(workspace: Workspace) -> dict[str, Path]:
    """The exported folder of each checkpoint, by its reference; of several formats by
    format/reference. Raises ArtefactError when the stage has not finished.
    """
    folders = workspace.artefact("export").facts["folders"]
    return {reference: Path(folder) for reference, folder in folders.items()}


def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
    """Write each checkpoint of the recipe to a folder of its own with its model card, and
    `report.json` with all differences beside them. Several formats have a folder each.

    Raises ConfigError when the recipe names a checkpoint twice.
    """
    references = recipe.export.checkpoints
    sources = {reference: workspace.resolve(reference).path for reference in references}
    origins = {name: origin(recipe, workspace, name) for name in references}
    config = recipe.export
    exports = export_all(config.format, sources, folder, origins, config.target_lang, card_of)
    notes = [f"{name}: {note}" for name, export in exports.items() for note in export.notes]
    print(*notes, sep="\n", end="\n" if notes else "", flush=True)
    differences = {name: export.report.differences for name, export in exports.items()}
    write_json(folder / "report.json", differences)
    final = workspace.folder(stage)
    folders = {name: str(final / export.name) for name, export in exports.items()}
    return {
        "path": next(iter(folders.values())),
        "folders": folders,
        "max_difference": {name: export.report.max_difference for name, export in exports.items()},
    }
