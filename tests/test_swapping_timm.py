import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.attention import ATTENTION_FUNCTIONS
from heterodox.swapping import SwappedSelfAttention, swap


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class TimmAttention(nn.Module):
    """The structure of `timm.layers.attention.Attention`, timm 1.0."""

    def __init__(self, dim=8, num_heads=2, qk_norm=False, scale_norm=False, gated=False, drop=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.attn_dim = dim
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(drop)
        self.norm = nn.LayerNorm(dim) if scale_norm else nn.Identity()
        self.gate = nn.Linear(dim, dim) if gated else None
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x, attn_mask=None, is_causal=False):
        batch, length, _ = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        x = F.scaled_dot_product_attention(
            q, k, v, attn_mask, self.attn_drop.p if self.training else 0.0, is_causal
        )
        x = self.norm(x.transpose(1, 2).reshape(batch, length, self.attn_dim))
        x = x if gate is None else x * gate
        return self.proj_drop(self.proj(x))


class OldTimmAttention(nn.Module):
    """The structure of the attention in timm 0.4 and in DINO: no mask, softmax written out."""

    def __init__(self, scale=4**-0.5):
        super().__init__()
        self.num_heads, self.scale = 2, scale
        self.qkv, self.proj = nn.Linear(8, 24, bias=False), nn.Linear(8, 8)
        self.attn_drop, self.proj_drop = nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        weights = self.attn_drop((qkv[0] @ qkv[1].mT * self.scale).softmax(-1))
        return self.proj_drop(self.proj((weights @ qkv[2]).transpose(1, 2).reshape(x.shape)))


@pytest.mark.parametrize("method", ATTENTION_FUNCTIONS)
@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}, {"scale_norm": True}, {"gated": True}])
def test_timm_attention_computes_the_method_between_its_projections(method, settings):
    model: Any = nn.Sequential(TimmAttention(**settings).double())
    keys = list(model.state_dict())
    report = swap(model, method)
    assert report.replaced == [("0", "TimmAttention", report.attention)]
    assert list(model.state_dict()) == keys
    layer, x = model[0], torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = layer.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    allowed = torch.ones(5, 5).tril().bool()
    additive = torch.zeros(5, 5).masked_fill(~allowed, -torch.inf)
    for keywords in ({}, {"attn_mask": allowed}, {"attn_mask": additive}, {"is_causal": True}):
        mask = allowed if keywords else None
        truth = ATTENTION_FUNCTIONS[method](layer.q_norm(q), layer.k_norm(k), v, mask)
        truth = layer.norm(truth.transpose(1, 2).flatten(2))
        truth = truth if layer.gate is None else truth * layer.gate(x).sigmoid()
        torch.testing.assert_close(layer(x, **keywords), layer.proj(truth))


def test_timm_dropout_acts_only_in_training():
    model: Any = nn.Sequential(TimmAttention(drop=0.5))
    model[0].proj_drop.p = 0.0
    swap(model)
    x = torch.randn(1, 5, 8)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_old_timm_attention_is_recognised_and_left_as_it_was():
    model: Any = nn.Sequential(OldTimmAttention())
    model[0].attn_drop.eval()
    weights = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    swap(model)
    assert model.training and not model[0].attn_drop.training and model[0].proj_drop.training
    assert type(model[0]) is SwappedSelfAttention
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Windowed(OldTimmAttention):
    """As Swin's: a table of relative positions is added to the logits."""

    def __init__(self):
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(7, 7))


class Rotary(OldTimmAttention):
    def forward(self, x, rope=None):
        return super().forward(x)


class Channels(OldTimmAttention):
    """As DaViT's and XCiT's: the same submodules, but channels attend to channels."""

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(v @ (k.mT @ q).softmax(-1))


class Convolutional(OldTimmAttention):
    qkv: Any

    def __init__(self):
        super().__init__()
        self.qkv = nn.Conv2d(8, 24, 1)


class Extra(OldTimmAttention):
    def __init__(self):
        super().__init__()
        self.local = nn.Conv1d(8, 8, 3)


class FixedLength(OldTimmAttention):
    def forward(self, x):
        return super().forward(x.view(-1, 49, 8))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Windowed(), "relative_position_bias_table"),
        (Rotary(), "rope"),
        (Channels(), "something else"),
        (OldTimmAttention(scale=0.25), "something else"),
        (Convolutional(), "qkv"),
        (Extra(), "local"),
        (FixedLength(), "trying it out failed"),
    ],
)
def test_look_alikes_are_skipped_with_the_reason(layer, reason):
    report = swap(nn.Sequential(OldTimmAttention(), layer))
    assert [name for name, *_ in report.replaced] == ["0"]
    ((name, kind, why),) = report.skipped
    assert (name, kind) == ("1", type(layer).__name__)
    assert reason in why
    with pytest.raises(ValueError, match=rf"(?s)^model: .*{reason}"):
        swap(nn.Sequential(layer))


def test_channels_are_told_apart_even_if_the_output_starts_at_zero():
    layer = Channels()
    nn.init.zeros_(layer.proj.weight)
    assert swap(nn.Sequential(OldTimmAttention(), layer)).skipped


def test_a_forward_replaced_on_the_instance_is_skipped():
    model = nn.ModuleList([OldTimmAttention(), OldTimmAttention(), nn.MultiheadAttention(8, 2)])
    model[1].forward = lambda x: x
    model[2].forward = lambda *x: x
    assert [name for name, *_ in swap(model).skipped] == ["1", "2"]


def test_timm_s_own_attention_is_recognised():
    try:
        from timm.layers import Attention
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm cannot be imported: {error}")
    model = nn.Sequential(Attention(8, 2), Attention(8, 2, qk_norm=True, norm_layer=nn.LayerNorm))
    assert len(swap(model).replaced) == 2
    assert model(torch.randn(1, 5, 8)).shape == (1, 5, 8)


def test_swapping_back_to_softmax_gives_the_old_output():
    model, x = nn.Sequential(TimmAttention(qk_norm=True, gated=True)), torch.randn(2, 5, 8)
    before = model(x)
    swap(model, "softplus")
    assert not torch.allclose(model(x), before)
    swap(model, "softmax")
    torch.testing.assert_close(model(x), before)


def test_a_bare_layer_must_be_wrapped():
    with pytest.raises(ValueError, match=r"^model: .*ModuleDict"):
        swap(TimmAttention())


def test_layers_on_the_meta_device_are_recognised():
    with torch.device("meta"):
        model = nn.ModuleList([TimmAttention(), Channels()])
    report = swap(model)
    assert [len(report.replaced), len(report.skipped)] == [1, 1]
