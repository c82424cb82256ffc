"""Our network against `transformers` with random weights: every field of its HubertConfig, every
layer, in inference and in training.

Training is compared draw by draw: both draw the same random numbers in the same order, so dropout,
layer drop and SpecAugment must agree exactly. Not compared, because `transformers` lacks it:
adapters with `do_stable_layer_norm=False` (see tests/model/test_language_adapters.py), scaled
gradients, several codebooks, and a norm over valid frames only. Its 5.x releases lack "selu", which
is added to its table here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hubert_pretrain.finetune.ctc import ctc_loss
from hubert_pretrain.interop.tensor_names import (
    TRANSFORMERS,
    TRANSFORMERS_CLASSES,
    TRANSFORMERS_CTC,
    left_over,
    to_ours,
    to_theirs,
)
from hubert_pretrain.interop.transformers_writer import import_transformers
from hubert_pretrain.model.config import ACTIVATIONS, HubertConfig
from hubert_pretrain.model.heads import ClassificationHead, CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.spec_augment import SpecAugment

BASE = HubertConfig(
    conv_dim=[24, 24, 32, 32, 32, 40, 40],
    conv_gradient_scale=1.0,
    hidden_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=96,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
VARIANTS = {
    "base": BASE,
    "large": dataclasses.replace(
        BASE, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True
    ),
    "pre-norm, group norm": dataclasses.replace(BASE, do_stable_layer_norm=True),
    "post-norm, layer norm": dataclasses.replace(BASE, feat_extract_norm="layer"),
    "no projection norm": dataclasses.replace(BASE, feat_proj_layer_norm=False),
    "odd positional kernel": dataclasses.replace(BASE, num_conv_pos_embeddings=15),
    "another grid": dataclasses.replace(
        BASE, conv_dim=[24, 32, 40], conv_kernel=[16, 5, 3], conv_stride=[8, 5, 2]
    ),
    "other eps": dataclasses.replace(BASE, layer_norm_eps=1e-3),
    "batch norm in positions": dataclasses.replace(BASE, conv_pos_batch_norm=True),
    "adapters": dataclasses.replace(BASE, do_stable_layer_norm=True, adapter_attn_dim=12),
    **{
        name: dataclasses.replace(BASE, hidden_act=name, feat_extract_activation=name)
        for name in ACTIVATIONS
        if name != "gelu"
    },
    "two activations": dataclasses.replace(BASE, hidden_act="silu", feat_extract_activation="relu"),
}
QUIET: dict[str, Any] = dict.fromkeys(
    ("feat_proj_dropout", "hidden_dropout", "attention_dropout", "activation_dropout", "layerdrop"),
    0.0,
)


@pytest.fixture(autouse=True)
def selu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`transformers` names selu in its documentation, but 5.x does not have it."""
    monkeypatch.setitem(import_transformers().activations.ACT2FN, "selu", nn.SELU)


def pair(
    config: HubertConfig, architecture: str = "HubertModel", **more: Any
) -> tuple[Hubert, Any]:
    """Our network and theirs with the same random weights, norms and biases too."""
    torch.manual_seed(1)
    shared = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("conv_gradient_scale", "normalize_waveform")
    }
    transformers = import_transformers()
    theirs = getattr(transformers, architecture)(transformers.HubertConfig(**shared, **more)).eval()
    with torch.no_grad():
        for parameter in [
            *theirs.parameters(),
            *(buffer for buffer in theirs.buffers() if buffer.is_floating_point()),
        ]:
            parameter.add_(
                torch.randn_like(parameter).abs() * 0.05
                if parameter.ndim == 1
                else torch.randn_like(parameter) * 0.05
            )
    encoder = encoder_of(theirs)
    ours = Hubert(config).eval()
    ours.load_state_dict(
        to_ours(encoder.state_dict(), ours.state_dict(), TRANSFORMERS, "transformers")
    )
    assert left_over(encoder.state_dict(), ours.state_dict(), TRANSFORMERS) == []
    return ours, theirs


def layer_outputs(theirs: Any, *args: Any, **kwargs: Any) -> tuple[list[Tensor], Tensor]:
    """Output of each of their layers by hooks (`hidden_states[-1]` means another thing in 4.57 than
    in 5.x), and the last hidden state.
    """
    states: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, __, output: states.append(output[0] if isinstance(output, tuple) else output)
        )
        for layer in theirs.encoder.layers
    ]
    last = theirs(*args, **kwargs).last_hidden_state
    for hook in hooks:
        hook.remove()
    return states, last


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    differences = [float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True)]
    assert max(differences) < 1e-5, differences


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "gradients", [False, True], ids=["without gradients", "with gradients"]
)  # which are computed in other ways
def test_hidden_states_of_every_layer(name: str, padded: bool, gradients: bool) -> None:
    config = VARIANTS[name]
    ours, theirs = pair(config)
    lengths = torch.tensor([16_000, 9_321 if padded else 16_000])
    waveform = torch.randn(2, 16_000) * (torch.arange(16_000) < lengths[:, None])
    frames = config.grid.num_frames(16_000)
    valid = torch.arange(frames) < config.grid.num_frames(lengths)[:, None] if padded else None
    attention_mask = (torch.arange(16_000) < lengths[:, None]).long() if padded else None
    with torch.set_grad_enabled(gradients):
        output = ours(waveform, valid=valid, hidden_states=True)
        states, last = layer_outputs(theirs, waveform, attention_mask=attention_mask)
    assert_equal([*output.hidden_states, output.last], [*states, last])


@pytest.mark.parametrize("name", ["base", "large"])
def test_layer_numbers_in_4_and_5(name: str) -> None:
    ours, theirs = pair(VARIANTS[name])
    waveform, valid, attention_mask = batch(11_000)
    with torch.no_grad():
        output = ours(waveform, valid=valid, hidden_states=True)
        states = theirs(
            waveform, attention_mask=attention_mask, output_hidden_states=True
        ).hidden_states
    *earlier, last = states
    assert_equal([output.encoder_input, *output.hidden_states[:-1]], earlier)
    after_final_norm = (output.last - last).abs().max() < 1e-5  # 4.57
    assert after_final_norm or (output.hidden_states[-1] - last).abs().max() < 1e-5  # 5.x


@pytest.mark.parametrize("name", ["base", "large"])
def test_span_mask(name: str) -> None:
    ours, theirs = pair(VARIANTS[name])
    waveform = torch.randn(2, 16_000)
    mask = torch.rand(2, 49) < 0.5
    with torch.no_grad():
        output = ours(waveform, mask=mask, hidden_states=True)
        states, last = layer_outputs(theirs, waveform, mask_time_indices=mask)
    assert_equal([*output.hidden_states, output.last], [*states, last])


@pytest.mark.parametrize("name", ["base", "large", "batch norm in positions", "adapters"])
def test_gradient_of_every_weight(name: str) -> None:
    ours, theirs = pair(VARIANTS[name])
    waveform = torch.randn(2, 16_000)
    direction = torch.randn(2, 49, BASE.hidden_size)
    mask = torch.rand(2, 49) < 0.5
    (ours(waveform, mask=mask).last * direction).mean().backward()
    (theirs(waveform, mask_time_indices=mask).last_hidden_state * direction).mean().backward()
    found = to_theirs(
        {key: parameter.grad for key, parameter in ours.named_parameters()}, TRANSFORMERS
    )
    expected = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(
            found[key], gradient, rtol=1e-3, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["base", "large"])
def test_classifier_with_padding(name: str, weighted: bool) -> None:
    config = VARIANTS[name]
    more = {"classifier_proj_size": 20, "num_labels": 5, "use_weighted_layer_sum": weighted}
    ours, theirs = pair(config, "HubertForSequenceClassification", **more)
    head = ClassificationHead(
        config.hidden_size, 5, 20, n_layers=config.num_hidden_layers, weighted_layers=weighted
    )
    head.load_state_dict(
        to_ours(theirs.state_dict(), head.state_dict(), TRANSFORMERS_CLASSES, "transformers")
    )
    lengths = torch.tensor([16_000, 11_000])
    waveform = torch.randn(2, 16_000) * (torch.arange(16_000) < lengths[:, None])
    valid = torch.arange(49) < config.grid.num_frames(lengths)[:, None]
    with torch.no_grad():
        logits = head(ours(waveform, valid=valid, hidden_states=True), valid)
        expected = theirs(
            waveform, attention_mask=(torch.arange(16_000) < lengths[:, None]).long()
        ).logits
    assert (logits - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["base", "large"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_attention_weights(name: str, padded: bool) -> None:
    ours, theirs = pair(VARIANTS[name], attn_implementation="eager")
    waveform, valid, attention_mask = batch(11_000 if padded else 16_000)
    with torch.no_grad():
        output = ours(waveform, valid=valid, attentions=True)
        expected = theirs(waveform, attention_mask=attention_mask, output_attentions=True)
    assert_equal(output.attentions, list(expected.attentions))
    assert_equal([output.last], [expected.last_hidden_state])


@pytest.mark.parametrize("name", ["base", "large"])
@pytest.mark.parametrize("dropout", list(QUIET)[:4])
def test_dropout_draw_by_draw(name: str, dropout: str) -> None:
    ours, theirs = pair(
        dataclasses.replace(VARIANTS[name], **{**QUIET, dropout: 0.3}),
        attn_implementation="eager",
        apply_spec_augment=False,
    )
    ours.attention = "eager"
    assert_equal_in_training(ours, theirs, {})


@pytest.mark.parametrize("name", ["base", "large"])
def test_layer_drop_draw_by_draw(name: str) -> None:
    config = dataclasses.replace(VARIANTS[name], **{**QUIET, "layerdrop": 0.5})
    ours, theirs = pair(config, apply_spec_augment=False)
    torch.manual_seed(5)
    keep = [bool(torch.rand([]) >= config.layerdrop) for _ in range(config.num_hidden_layers)]
    assert 0 < sum(keep) < config.num_hidden_layers
    assert_equal_in_training(ours, theirs, {"active_layers": keep})


@pytest.mark.parametrize("name", ["base", "large"])
@pytest.mark.parametrize(
    "fields",
    [
        {"mask_time_prob": 0.5, "mask_time_length": 4},
        {"mask_time_prob": 0.05, "mask_time_length": 6, "mask_time_min_masks": 5},
        {"mask_time_prob": 0.0, "mask_feature_prob": 0.4, "mask_feature_length": 5},
        {
            "mask_time_prob": 0.4,
            "mask_feature_prob": 0.1,
            "mask_feature_length": 7,
            "mask_feature_min_masks": 3,
        },
        {"apply_spec_augment": False, "mask_time_prob": 0.5},
    ],
    ids=lambda fields: ", ".join(f"{name}={value}" for name, value in fields.items()),
)
def test_spec_augment_draw_by_draw(name: str, fields: dict[str, Any]) -> None:
    ours, theirs = pair(dataclasses.replace(VARIANTS[name], **QUIET), **fields)
    time, channels = SpecAugment(**fields).draw(
        2, 49, BASE.hidden_size, generator=np.random.RandomState(5)
    )  # type: ignore[arg-type]
    assert (time is None) == (
        not fields.get("apply_spec_augment", True) or fields["mask_time_prob"] == 0
    )
    masks = {"mask": time, "channel_mask": channels}
    assert_equal_in_training(
        ours,
        theirs,
        {key: torch.from_numpy(value) for key, value in masks.items() if value is not None},
    )


def assert_equal_in_training(ours: Hubert, theirs: Any, arguments: dict[str, Any]) -> None:
    """The same outputs and gradients from the same random numbers, and others than in inference."""
    waveform = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(2))
    direction = torch.randn(2, 49, BASE.hidden_size, generator=torch.Generator().manual_seed(3))
    results = []
    for model, more in ((ours.train(), arguments), (theirs.train(), {})):
        torch.manual_seed(5)
        np.random.seed(5)  # what `transformers` draws its masks from
        output = model(waveform, **more)
        last = output.last if model is ours else output.last_hidden_state
        (last * direction).mean().backward()
        results.append(last.detach())
    assert_equal(results[:1], results[1:])
    torch.testing.assert_close(
        ours.projection.linear.weight.grad,
        encoder_of(theirs).feature_projection.projection.weight.grad,
    )
    inference = ours.eval()(waveform).last
    changed = float((inference - results[0]).detach().abs().max())
    assert (changed > 1e-3) == bool(
        arguments or any(getattr(ours.config, name) for name in QUIET)
    ), changed


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("name", ["base", "large"])
def test_ctc_in_training(name: str, reduction: str, zero_infinity: bool) -> None:
    config = dataclasses.replace(VARIANTS[name], **QUIET)
    more = {
        "vocab_size": 7,
        "final_dropout": 0.4,
        "ctc_loss_reduction": reduction,
        "ctc_zero_infinity": zero_infinity,
    }
    ours, theirs = pair(config, "HubertForCTC", **more, apply_spec_augment=False)
    head = CTCHead(config.hidden_size, 7, dropout=0.4)
    head.load_state_dict(
        to_ours(theirs.state_dict(), head.state_dict(), TRANSFORMERS_CTC, "transformers")
    )
    waveform, valid, attention_mask = batch(11_000)
    lengths = torch.tensor(
        [5, 40 if zero_infinity else 3]
    )  # 40 characters do not fit 34 frames: an infinite loss
    labels = torch.randint(1, 7, (2, 40)).masked_fill(torch.arange(40) >= lengths[:, None], -100)
    torch.manual_seed(5)
    logits = head(ours.train()(waveform, valid=valid).last)
    torch.manual_seed(5)
    expected = theirs.train()(waveform, attention_mask=attention_mask, labels=labels)
    loss = ctc_loss(
        logits, valid.sum(1), labels, lengths, reduction=reduction, zero_infinity=zero_infinity
    )
    assert_equal([logits], [expected.logits])
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    loss.backward()
    expected.loss.backward()
    found = {
        **{f"hubert.{key}": gradient for key, gradient in gradients(ours, TRANSFORMERS).items()},
        **gradients(head, TRANSFORMERS_CTC),
    }
    named = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    assert found.keys() == named.keys()
    without = [key for key, gradient in named.items() if gradient is None]
    assert without == ["hubert.masked_spec_embed"]  # nothing is masked here
    assert found.pop(without[0]) is None
    assert all(gradient.any() for gradient in found.values() if gradient.ndim > 1)
    for key in found:
        gradient = named[key]
        difference = (found[key] - gradient).norm()
        assert difference <= 1e-4 * gradient.norm() + 1e-6, (key, difference, gradient.norm())


def gradients(module: nn.Module, names: Any) -> dict[str, Tensor]:
    """The gradient of every weight, under the names of `transformers`."""
    found = {key: parameter.grad for key, parameter in module.named_parameters()}
    return to_theirs(found, names)


def batch(second: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Two waveforms, the second of so many samples: (2, 16000), `valid` and their attention mask,
    both None when there is no padding.
    """
    real = torch.arange(16_000) < torch.tensor([[16_000], [second]])
    waveform = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(2)) * real
    if second == 16_000:
        return waveform, None, None
    return waveform, torch.arange(49) < BASE.grid.num_frames(real.sum(1))[:, None], real.long()


def encoder_of(theirs: Any) -> Any:
    return getattr(theirs, "hubert", theirs)
