"""The export stage: folders named like their checkpoints, facts, and files of a killed run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hubert_pretrain.config.schema import ExportConfig, Recipe
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.files import write_json
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import FORMAT, Workspace
from hubert_pretrain.stages.export import run

SMALL = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embedding_groups=2,
)


def finished(
    workspace: Workspace, stage: str, head: CodebookHead | CTCHead, **extra: object
) -> None:
    save_model(workspace.folder(stage), Hubert(SMALL), head=head, extra=extra)
    write_json(
        workspace.folder(stage) / "meta.json", {"format": FORMAT, "fingerprint": "x", "facts": {}}
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    torch.manual_seed(0)
    workspace = Workspace(tmp_path / "run")
    finished(workspace, "it2/pretrain", CodebookHead(16, 8, 10))
    finished(workspace, "finetune/asr", CTCHead(16, 4), vocabulary=["<pad>", "<unk>", "|", "A"])
    return workspace


def recipe(*checkpoints: str, form: str | list[str] = "huggingface") -> Recipe:
    return Recipe(name="test", export=ExportConfig(format=form, checkpoints=list(checkpoints)))


def test_facts_and_folders(workspace: Workspace) -> None:
    partial = workspace.partial_folder("export")
    (partial / "it2" / "pretrain").mkdir(parents=True)
    # Left by a killed run:
    (partial / "it2" / "pretrain" / "model.safetensors").write_bytes(b"half a file")
    facts = run(recipe("finetune/asr", "it2/pretrain"), workspace, "export", partial)
    assert facts["path"] == str(workspace.folder("export") / "finetune" / "asr")
    assert (
        facts["folders"].keys()
        == facts["max_difference"].keys()
        == {"finetune/asr", "it2/pretrain"}
    )
    assert max(facts["max_difference"].values()) < 1e-5
    assert json.loads((partial / "report.json").read_text())["it2/pretrain"].keys() == {
        "layer 1",
        "layer 2",
        "last",
    }
    assert (partial / "it2" / "pretrain" / "config.json").is_file()


def test_several_formats(workspace: Workspace) -> None:
    partial = workspace.partial_folder("export")
    chosen = recipe("it2/pretrain", "finetune/asr", form=["torchaudio", "fairseq"])
    facts = run(chosen, workspace, "export", partial)
    files = sorted(str(path.relative_to(partial)) for path in partial.rglob("*.pt"))
    assert files == [
        "fairseq/finetune/asr/checkpoint.pt",
        "fairseq/it2/pretrain/checkpoint.pt",
        "torchaudio/finetune/asr/hubert.pt",
        "torchaudio/it2/pretrain/hubert.pt",
    ]
    export = workspace.folder("export")
    assert facts["path"] == str(export / "torchaudio" / "it2" / "pretrain")
    with pytest.raises(ConfigError, match="did you mean 'fairseq'"):
        run(recipe("it2/pretrain", form=["fairseq2"]), workspace, "export", partial)
    assert facts["folders"]["fairseq/finetune/asr"] == str(export / "fairseq" / "finetune" / "asr")
    assert max(facts["max_difference"].values()) < 1e-5


def test_stages_of_two_runs(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "other")
    finished(other, "it2/pretrain", CodebookHead(16, 8, 10))
    partial = workspace.partial_folder("export")
    reference = str(other.folder("it2/pretrain"))
    facts = run(recipe("it2/pretrain", reference), workspace, "export", partial)
    names = [Path(folder).parts[-3:] for folder in facts["folders"].values()]
    assert names == [("run", "it2", "pretrain"), ("other", "it2", "pretrain")]


def test_unknown_checkpoints_and_formats(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="it3/pretrain"):
        run(recipe("it3/pretrain"), workspace, "export", tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'huggingface'"):
        run(recipe("it2/pretrain", form="hugging_face"), workspace, "export", tmp_path)
    with pytest.raises(ConfigError, match=r"names one checkpoint twice: it2/pretrain, /"):
        run(
            recipe("it2/pretrain", str(workspace.folder("it2/pretrain"))),
            workspace,
            "export",
            tmp_path,
        )
