"""Final scores of a fine-tuning by a search: language model, lexicon, weights from the valid
split.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from hubert_pretrain.config.schema import FinetuneConfig, Recipe, TrainerConfig
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.decoding.arpa import read_arpa
from hubert_pretrain.decoding.build import build_decoder
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.finetune import search
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.dataset import WholeUtterances
from hubert_pretrain.finetune.search import FineTuned, final_results
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import evaluate
from tests.finetune.conftest import run_task
from tests.finetune.test_stage import CTC, SPEAKERS


def test_a_task_is_scored_by_a_search(workspace: Workspace) -> None:
    decoding = DecodingConfig(
        kind="lexicon",
        lm="train",
        lm_order=2,
        lm_weights=[0.2, 0.4],
        word_scores=[0.0, 1.0],
        beam_size=20,
        workers=1,
    )
    run_task(workspace, "asr", CTC, decoding=decoding)
    trained = workspace.finish("finetune/asr", {"fingerprint": "f", "facts": {}}).path
    recipe = Recipe(
        name="tones",
        finetune={"asr": FinetuneConfig(task=CTC, checkpoint="/", decoding=decoding)},
        trainer=TrainerConfig(accelerator="cpu"),
    )
    folder = workspace.begin("evaluate/asr/test", "e", {})
    facts = evaluate.run(recipe, workspace, "evaluate/asr/test", folder)
    assert facts["decoding"]["lm_weight"] in (0.2, 0.4)
    assert {"wer", "cer", "greedy_wer", "greedy_cer"} <= set(facts)
    points = [json.loads(line) for line in (folder / search.SWEEP).read_text().splitlines()]
    assert len(points) == 4
    best = min(points, key=lambda point: point["error_rate"])
    assert facts["decoding"]["lm_weight"] <= best["lm_weight"]
    words = (trained / search.LEXICON).read_text().split()
    assert set(read_arpa(trained / search.LM).words) == {*words, "<s>", "</s>", "<unk>"}
    lines = (folder / "hypotheses.tsv").read_text().splitlines()[1:]
    assert len(lines) == facts["utterances"]
    assert all(set(line.split("\t")[2].split()) <= set(words) for line in lines)


@pytest.mark.parametrize(
    ("task", "decoding", "message"),
    [
        (SPEAKERS, {"kind": "beam"}, r"finetune.speakers.decoding.kind=beam: ClassifyTask decodes"),
        (CTC, {"kind": "beam", "lm": "none.arpa"}, r"decoding.lm=none.arpa: there is no such file"),
    ],
)
def test_a_search_that_cannot_be_fails_before_the_first_step(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    task: dict[str, Any],
    decoding: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setattr("hubert_pretrain.stages.finetune.fit", None)
    name = "speakers" if task is SPEAKERS else "asr"
    with pytest.raises(ConfigError, match=message):
        run_task(workspace, name, task, decoding=DecodingConfig(**decoding))


def test_words_of_another_case_fail_before_the_first_step(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hubert_pretrain.stages.finetune.fit", None)
    lexicon = workspace.root / "lexicon.txt"
    lexicon.write_text("abc\nbad\n")
    decoding = DecodingConfig(kind="lexicon", lexicon=str(lexicon))
    with pytest.raises(DataError, match=r"lexicon.txt: 2 of 2 words \(abc, bad\) have characters"):
        run_task(workspace, "asr", CTC, decoding=decoding)


def test_predictions_are_those_of_the_decoder_in_order(
    corpus: Corpus, tiny: HubertConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(search, "FRAMES_AT_ONCE", 150)  # several batches
    torch.manual_seed(0)
    model = Hubert(tiny)
    task = CtcTask()
    train = task.fit(corpus, corpus.manifest.rows("train"), model.grid)
    test = task.examples(corpus, corpus.manifest.rows("test"), model.grid)
    head = task.head(tiny)
    torch.nn.init.normal_(head.linear.weight)
    config = DecodingConfig(kind="beam", lm="train", lm_order=2, beam_size=10, workers=1)
    decoder = task.decoder(config, train.references, model.grid, "decoding")
    utterances = WholeUtterances(corpus, test, model)
    tuned = FineTuned(model, head, task, torch.device("cpu"))
    results, stated = final_results(tuned, utterances, utterances, decoder, config, tmp_path)
    assert list(results.references) == test.references
    assert task.vocabulary is not None
    again = build_decoder(config, task.vocabulary.symbols, texts=train.references)
    for index, text in enumerate(results.texts):
        with torch.inference_mode():
            output = model(utterances[index]["waveform"])
            values = task.logits(head, output, None)[0].log_softmax(-1).numpy()
        assert text == again.decode(np.asarray(values)).text
    greedy, nothing = final_results(tuned, utterances, utterances, None, config, tmp_path)
    assert nothing == {}
    assert stated["greedy_wer"] == task.score(greedy)["wer"]
