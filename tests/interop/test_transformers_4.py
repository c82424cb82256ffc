"""Exported folders in the last `transformers` of version 4, which reads other processor files and
writes other names than version 5.

`make` installs it into `.venv/transformers4`, which a child process finds before version 5. Not
tested there: a weighted sum of layers of a pre-norm model, whose last layer means another thing in
4.57 (see HubertOutput.hidden_states).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hubert_pretrain.interop.compare import probe_waveform
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.transformers_writer import export_huggingface
from hubert_pretrain.model.config import HubertConfig
from tests.interop.test_transformers_writer import (
    CLASSES,
    GROUP,
    LAYER,
    VOCABULARY,
    checkpoint,
    greedy,
)

pytestmark = pytest.mark.slow

OTHER = Path(sys.prefix) / "transformers4"

READ = """
import json, sys
import numpy as np, torch, transformers
from transformers import AutoFeatureExtractor, AutoProcessor, pipeline
folder, architecture, waveform = sys.argv[1], sys.argv[2], np.load(sys.argv[3])
assert transformers.__version__.startswith("4."), transformers.__version__
extractor = AutoFeatureExtractor.from_pretrained(folder)
inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_values
model, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
with torch.inference_mode():
    output = model.eval()(inputs, output_hidden_states=True)
arrays = {f"state{n}": state.numpy() for n, state in enumerate(output.hidden_states)}
arrays["last"] = (output.logits if "logits" in output else output.last_hidden_state).numpy()
np.savez(sys.argv[4], inputs=inputs.numpy(), **arrays)
found = {
    "missing": info["missing_keys"],
    "unexpected": info["unexpected_keys"],
    "normalize": extractor.do_normalize,
}
if architecture == "HubertForCTC":
    found["symbols"] = len(AutoProcessor.from_pretrained(folder).tokenizer)
    found["text"] = pipeline("automatic-speech-recognition", model=folder)(waveform)["text"]
if architecture == "HubertForSequenceClassification":
    found["label"] = pipeline("audio-classification", model=folder)(waveform)[0]["label"]
model.save_pretrained(sys.argv[5])
print(json.dumps(found))
"""


def read_in_4(
    folder: Path, architecture: str, waveform: np.ndarray, place: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Version 4's description of a folder and the arrays that it computes; it saves the model again
    in `place / "again"`.
    """
    if not (OTHER / "transformers").is_dir():
        pytest.skip(f"no transformers 4 in {OTHER}: `make test-all` installs it")
    np.save(place / "waveform.npy", waveform)
    arguments = [
        str(folder),
        architecture,
        str(place / "waveform.npy"),
        str(place / "out.npz"),
        str(place / "again"),
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(OTHER), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", READ, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), dict(np.load(place / "out.npz"))


@pytest.mark.parametrize("config", [GROUP, LAYER], ids=["group", "layer"])
@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("pretrain", "HubertModel"),
        ("ctc", "HubertForCTC"),
        ("classify", "HubertForSequenceClassification"),
    ],
)
def test_version_4_computes_the_same_and_saves_the_same(
    tmp_path: Path, config: HubertConfig, kind: str, architecture: str
) -> None:
    loaded = checkpoint(tmp_path / "ours", config, kind)
    export_huggingface(tmp_path / "theirs", loaded)
    waveform = probe_waveform(16_000)
    found, theirs = read_in_4(tmp_path / "theirs", architecture, waveform, tmp_path)

    assert found["missing"] == found["unexpected"] == []
    assert found["normalize"] is config.normalize_waveform
    with torch.inference_mode():
        ours = loaded.model(torch.from_numpy(theirs["inputs"]), hidden_states=True)
        states = [ours.encoder_input, *(ours.hidden_states or [])]
        last = ours.last
        if kind == "ctc":
            last = loaded.build_head()(ours.last)
        elif kind == "classify":
            last = loaded.build_head()(ours)
    # The last state of a pre-norm model is after the final norm there.
    for number, state in enumerate(states[:-1] if config.do_stable_layer_norm else states):
        np.testing.assert_allclose(theirs[f"state{number}"], state.numpy(), atol=1e-5)
    np.testing.assert_allclose(theirs["last"], last.numpy(), atol=1e-5)
    if kind == "ctc":
        assert found["symbols"] == len(VOCABULARY)
        assert found["text"] == greedy(last[0].argmax(-1).tolist(), VOCABULARY)
    if kind == "classify":
        assert found["label"] == CLASSES[int(last[0].argmax())]

    again = load_checkpoint(tmp_path / "again").model.state_dict()
    assert all(
        torch.equal(again[name], tensor) for name, tensor in loaded.model.state_dict().items()
    )
