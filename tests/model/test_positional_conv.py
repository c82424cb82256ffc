"""The forms of the positional convolution, and the choice between them."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_pretrain.fields import AUTO
from hubert_pretrain.model import positional_conv
from hubert_pretrain.model.config import POSITIONAL_FORMS, HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.positional_conv import FORMS, PositionalConv, fastest_form

SMALL = HubertConfig(
    hidden_size=32,
    num_attention_heads=2,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)


def test_the_configuration_knows_the_forms() -> None:
    assert list(FORMS) == POSITIONAL_FORMS


@settings(max_examples=25, deadline=None)
@given(
    form=st.sampled_from(POSITIONAL_FORMS),
    rows=st.integers(1, 3),
    frames=st.integers(1, 70),
    taps=st.integers(1, 40),
    groups=st.sampled_from([1, 3]),
    biased=st.booleans(),
)
def test_every_form_is_the_plain_convolution(
    form: str, rows: int, frames: int, taps: int, groups: int, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(frames * 100 + taps)
    channels = 4

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    x = normal(rows, groups * channels, frames)
    weight = normal(groups * channels, channels, taps)
    inputs = [x, weight]
    bias = normal(groups * channels) if biased else None
    if bias is not None:
        inputs.append(bias)
    found = FORMS[form](x, weight, bias, groups)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    exact_bias = exact[2] if biased else None
    expected = F.conv1d(exact[0], exact[1], exact_bias, padding=taps // 2, groups=groups)
    expected = expected[..., :frames]
    direction = torch.randn(found.shape, generator=generator)
    torch.testing.assert_close(found, expected.float(), atol=5e-5, rtol=1e-5)
    ours = torch.autograd.grad(found, inputs, direction)
    theirs = torch.autograd.grad(expected, exact, direction.double())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.float(), atol=2e-5 * (1 + float(b.abs().max())), rtol=0)


@pytest.mark.parametrize("form", POSITIONAL_FORMS)
def test_every_form_under_autocast_is_near_the_same_and_returns_bf16(form: str) -> None:
    torch.manual_seed(0)
    module = PositionalConv(SMALL)
    x = torch.randn(2, 49, 32)
    exact = module(x)
    module.form = form
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.02, rtol=0.02)


def test_a_cpu_follows_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """By kernel and gradients alone, never by time."""
    used: list[str] = []
    for name, form in FORMS.items():

        def recorded(*a, name=name, form=form):  # type: ignore[no-untyped-def]
            used.append(name)
            return form(*a)

        monkeypatch.setitem(FORMS, name, recorded)
    x = torch.randn(1, 8, 20)
    for taps in (16, 64):
        weight = torch.randn(8, 4, taps)
        positional_conv.same_length_conv(x, weight, None, 2)
        with torch.no_grad():
            positional_conv.same_length_conv(x, weight, None, 2)
    assert used == ["conv", "conv", "fft", "conv"]
    assert not positional_conv.measures_forms(torch.device("cpu"))
    assert positional_conv.measures_forms(torch.device("cuda"))


def test_a_form_is_configured_and_is_part_of_no_weights() -> None:
    model = Hubert(SMALL)
    assert model.context_encoder.positions.form == AUTO
    names = list(model.state_dict())
    assert model.configure(positions="products").context_encoder.positions.form == "products"
    assert list(model.state_dict()) == names


def test_the_fastest_form_is_taken_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a clock on which each form takes a time that is known."""
    clock = [0.0]
    costs = {"conv": 3.0, "fft": 1.0, "products": 2.0}
    for name, form in FORMS.items():

        def timed(*a, name=name, form=form):  # type: ignore[no-untyped-def]
            clock[0] += costs[name]
            return form(*a)

        monkeypatch.setitem(FORMS, name, timed)
    monkeypatch.setattr(positional_conv, "_now", lambda device: clock[0])
    state = torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        assert fastest_form(2, 20, SMALL, torch.device("cpu")) == "fft"
    assert "conv 3000.00 ms, fft 1000.00 ms, products 2000.00 ms" in caplog.text
    assert torch.equal(torch.get_rng_state(), state)
