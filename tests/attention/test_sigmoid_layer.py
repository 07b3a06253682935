"""The sigmoid layer against its equations, and LayerScale."""

import math

import pytest
import torch
from torch import nn

from heterodox.attention.position import alibi_slopes, apply_rotary
from heterodox.attention.sigmoid import LayerScale, SigmoidAttention
from heterodox.attention.softmax import SoftmaxAttention

BATCH, LENGTH, WIDTH, HEADS, HEAD_DIM = 2, 7, 12, 3, 4
PADDING = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])[:, None, None, :]


def written_out(layer, x, attn_mask=None, is_causal=False):
    """One row of one head at a time, over a list of the keys that it sees."""
    bias = -math.log(LENGTH) if layer.attention_bias is None else layer.attention_bias
    output = torch.zeros_like(x)
    for b in range(BATCH):
        projected = layer.qkv(x[b])
        for h in range(HEADS):
            query, key, value = (
                projected[:, part * WIDTH + h * HEAD_DIM :][:, :HEAD_DIM] for part in range(3)
            )
            query, key = layer.q_norm(query), layer.k_norm(key)
            if layer.position == "rotary":
                query, key = apply_rotary(query), apply_rotary(key)
            for i in range(LENGTH):
                for j in range(LENGTH):
                    if attn_mask is not None and not attn_mask[b, 0, 0, j]:
                        continue
                    if is_causal and j > i:
                        continue
                    logit = query[i] @ key[j] / math.sqrt(HEAD_DIM) + bias
                    if layer.position == "alibi":
                        logit = logit - alibi_slopes(HEADS)[h] * abs(i - j)
                    output[b, i, h * HEAD_DIM : (h + 1) * HEAD_DIM] += logit.sigmoid() * value[j]
    return layer.proj(output)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("attn_mask", [None, PADDING], ids=["no mask", "padding"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sequence_length": 50, "position": "rotary", "qk_norm": True},
        {"attention_bias": -1.5, "position": "alibi", "bias": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_the_layer_is_sigmoid_attention_written_out(options, attn_mask, is_causal):
    torch.manual_seed(0)
    layer = SigmoidAttention(WIDTH, HEADS, **options).double()
    x = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
    expected = written_out(layer, x, attn_mask, is_causal)
    torch.testing.assert_close(layer(x, attn_mask=attn_mask, is_causal=is_causal), expected)


def test_queries_and_keys_are_normalised_before_they_are_rotated():
    layer = SigmoidAttention(WIDTH, HEADS, qk_norm=True, position="rotary").double()
    x = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        layer.q_norm.weight.copy_(torch.tensor([2.0, 0.5, 1.0, 3.0]))
        layer.k_norm.bias.copy_(torch.tensor([0.3, -0.2, 0.1, 0.4]))
    torch.testing.assert_close(layer(x), written_out(layer, x))
    assert layer.q_norm.eps == 1e-5


def test_a_fixed_bias_makes_a_prefix_independent_of_what_follows():
    x = torch.randn(1, 20, WIDTH)
    fixed = SigmoidAttention(WIDTH, HEADS, sequence_length=20, position="rotary")
    torch.testing.assert_close(fixed(x, is_causal=True)[:, :5], fixed(x[:, :5], is_causal=True))
    following = SigmoidAttention(WIDTH, HEADS, position="rotary")
    difference = following(x, is_causal=True)[:, :5] - following(x[:, :5], is_causal=True)
    assert difference.abs().max() > 0.01


@pytest.mark.parametrize("position", [None, "alibi"])
def test_padding_does_not_matter(position):
    layer = SigmoidAttention(WIDTH, HEADS, sequence_length=LENGTH, position=position)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    padded = layer(x, attn_mask=PADDING)
    torch.testing.assert_close(padded[1:, :4], layer(x[1:, :4]))


def test_dropout_acts_in_training_only():
    layer = SigmoidAttention(WIDTH, HEADS, dropout=0.9)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_the_softmax_layer_has_the_same_state():
    options = {"qk_norm": True, "bias": True, "position": "rotary"}
    softmax = SoftmaxAttention(WIDTH, HEADS, **options)
    sigmoid = SigmoidAttention(WIDTH, HEADS, sequence_length=LENGTH, **options)
    sigmoid.load_state_dict(softmax.state_dict())
    assert set(sigmoid.state_dict()) == {
        f"{module}.{kind}"
        for module in ("qkv", "proj", "q_norm", "k_norm")
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_made_from_multihead_attention_uses_its_weights(bias):
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.2, bias=bias, batch_first=True).eval()
    mha = mha.double()
    if bias:
        nn.init.normal_(mha.in_proj_bias)
        nn.init.normal_(mha.out_proj.bias)
    layer = SigmoidAttention.from_multihead(mha, sequence_length=LENGTH)
    x = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
    assert not layer.training and layer.dropout == 0.2
    torch.testing.assert_close(layer(x), written_out(layer, x))
    softmax = SoftmaxAttention(WIDTH, HEADS, bias=bias).double()
    softmax.load_state_dict(layer.state_dict())
    torch.testing.assert_close(softmax(x), mha(x, x, x)[0])


@pytest.mark.parametrize(
    "options", [{"kdim": 5}, {"vdim": 5}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str
)
def test_multihead_attention_that_has_no_counterpart_is_refused(options):
    with pytest.raises(ValueError, match=r"^mha: "):
        SigmoidAttention.from_multihead(nn.MultiheadAttention(WIDTH, HEADS, **options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 10}, "embed_dim: 10 given"),
        ({"num_heads": 0}, "num_heads: 0 given"),
        ({"embed_dim": 15, "position": "rotary"}, "position: 'rotary' given with 5 channels"),
        ({"position": "learned"}, "position: 'learned' given"),
        ({"dropout": 1.0}, "dropout: 1.0 given"),
        ({"sequence_length": 0}, "sequence_length: 0 given"),
        ({"sequence_length": 9, "attention_bias": -2.0}, "attention_bias: -2.0 given together"),
    ],
)
def test_bad_settings_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SigmoidAttention(**{"embed_dim": WIDTH, "num_heads": HEADS, **arguments})


def test_layer_scale_multiplies_channels_by_learned_factors_that_start_small():
    scale = LayerScale(3)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(scale(x), 1e-4 * x)
    scale(x).sum().backward()
    torch.testing.assert_close(scale.gamma.grad, x.sum((0, 1)))
    torch.testing.assert_close(LayerScale(3, init=0.5)(x), 0.5 * x)
