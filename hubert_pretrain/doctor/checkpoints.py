"""The row about checkpoints that come from elsewhere, and about what networks want to hear."""

from __future__ import annotations

from collections.abc import Mapping

from hubert_pretrain.doctor.row import Row, error, ok, warning
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.loader import load_checkpoint
from hubert_pretrain.workspace import Workspace


def read(workspace: Workspace, outside: Mapping[str, str]) -> tuple[Row, dict[str, HubertConfig]]:
    """Can the checkpoints be read that other runs or projects made (`outside`: reference -> the stage that reads it)? And their forms."""
    found: dict[str, HubertConfig] = {}
    for reference, stage in outside.items():
        try:
            found[reference] = load_checkpoint(workspace.resolve(reference).path).model.config
        except HubertPretrainError as failure:
            return error("inputs", f"{stage} reads {failure}", "give another checkpoint: docs/checkpoints.md says which can be read"), found
    return ok("inputs", f"can be read: {', '.join(outside)}" if outside else "no checkpoints of other runs"), found


def normalisation(models: Mapping[str, HubertConfig]) -> Row:
    """Does each network (by its name) get the waveform that its front end wants?

    HuBERT Large and XLarge, whose conv layers norm over channels, were trained on normalised waveforms (task.normalize=true), Base, with
    its norm over time, on raw ones. A converter that writes `do_normalize` the same for both is how it goes wrong.
    """
    states = {name: "normalised" if model.normalize_waveform else "as recorded" for name, model in models.items()}
    found = ", ".join(f"{name} gets waveforms {state}" for name, state in states.items())
    for name, model in models.items():
        if model.feat_extract_norm == "layer" and not model.normalize_waveform:
            what = f"with feat_extract_norm=layer {name} wants them normalised"
            return warning("normalisation", f"{found}; {what}", "set model.normalize_waveform=true, or mend the checkpoint's")
        if model.feat_extract_norm == "group" and model.normalize_waveform:
            what = f"released models with feat_extract_norm=group, as {name} has, take them as recorded"
            return warning("normalisation", f"{found}; {what}", "set model.normalize_waveform=false, unless it was trained so")
    return ok("normalisation", found)
