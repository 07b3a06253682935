"""The softmax layer against softmax written out, with every combination of mask and position."""

import math

import pytest
import torch

from heterodox.attention.position import alibi_slopes, apply_rotary
from heterodox.attention.softmax import SoftmaxAttention

BATCH, LENGTH, WIDTH, HEADS = 2, 7, 12, 3
PADDING = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])[:, None, None, :]


def written_out(layer, x, attn_mask=None, is_causal=False):
    """One row of one head at a time, over a list of the keys that it sees."""
    batch, length, width = x.shape
    head_dim = width // layer.num_heads
    slopes = alibi_slopes(layer.num_heads)
    output = torch.zeros(batch, length, width, dtype=x.dtype)
    allowed = torch.ones(batch, layer.num_heads, length, length, dtype=torch.bool)
    added = torch.zeros(batch, layer.num_heads, length, length, dtype=x.dtype)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        allowed = allowed & attn_mask
    elif attn_mask is not None:
        added = added + attn_mask
    for b in range(batch):
        projected = layer.qkv(x[b])
        for h in range(layer.num_heads):
            query, key, value = (
                projected[:, part * width + h * head_dim :][:, :head_dim] for part in range(3)
            )
            query, key = layer.q_norm(query), layer.k_norm(key)
            if layer.position == "rotary":
                query, key = apply_rotary(query), apply_rotary(key)
            for i in range(length):
                seen = [
                    j for j in range(length) if allowed[b, h, i, j] and (j <= i or not is_causal)
                ]
                if not seen:
                    continue
                temperature = math.log(len(seen)) if layer.log_n else 1.0
                logits = temperature * (key[seen] @ query[i]) / math.sqrt(head_dim)
                logits = logits + added[b, h, i, seen]
                if layer.position == "alibi":
                    distance = torch.tensor([abs(i - j) for j in seen])
                    logits = logits - slopes[h] * distance
                weights = torch.exp(logits) / torch.exp(logits).sum()
                output[b, i, h * head_dim : (h + 1) * head_dim] = weights @ value[seen]
    return layer.proj(output)


MASKS = {
    "none": None,
    "padding": PADDING,
    "boolean": torch.rand(BATCH, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0))
    > 0.4,
    "row": torch.arange(LENGTH) != 2,
    "floating": torch.randn(
        HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ),
}


@pytest.mark.parametrize("window", [1, 3, 20])
@pytest.mark.parametrize("mask", MASKS)
def test_a_window_hides_what_is_further_back(mask, window):
    layer = SoftmaxAttention(WIDTH, HEADS, window=window).double()
    x = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
    rows = torch.arange(LENGTH)
    near = rows[:, None] - rows < window
    both = MASKS[mask]
    if both is None:
        both = near
    elif both.dtype == torch.bool:
        both = both & near
    else:
        both = both.masked_fill(~near, -torch.inf)
    plain = SoftmaxAttention(WIDTH, HEADS).double()
    plain.load_state_dict(layer.state_dict())
    expected = plain(x, both, is_causal=True)
    torch.testing.assert_close(layer(x, MASKS[mask], is_causal=True), expected)
    with pytest.raises(ValueError, match=r"^is_causal: False given"):
        layer(x)
    with pytest.raises(ValueError, match=r"^window: 0 given"):
        SoftmaxAttention(WIDTH, HEADS, window=0)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "rotary", "qk_norm": True, "bias": True},
        {"position": "alibi"},
        {"qk_norm": True, "log_n": True},
        {"position": "alibi", "log_n": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_layer_is_softmax_written_out(options, mask, is_causal):
    if mask == "floating" and options.get("log_n"):
        pytest.skip("has no number of visible keys")
    torch.manual_seed(0)
    layer = SoftmaxAttention(WIDTH, HEADS, **options).double()
    x = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64)
    output = layer(x, attn_mask=MASKS[mask], is_causal=is_causal)
    torch.testing.assert_close(output, written_out(layer, x, MASKS[mask], is_causal))


@pytest.mark.parametrize("position", [None, "rotary", "alibi"])
@pytest.mark.parametrize("log_n", [False, True])
def test_tokens_without_visible_keys_give_zeros_and_finite_gradients(position, log_n):
    layer = SoftmaxAttention(WIDTH, HEADS, position=position, log_n=log_n)
    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    mask[3] = False
    output = layer(x, attn_mask=mask, is_causal=True)
    output.sum().backward()
    assert (output[:, 3] == 0).all()
    assert x.grad is not None and x.grad.isfinite().all()


def test_later_tokens_do_not_matter_when_causal():
    layer = SoftmaxAttention(WIDTH, HEADS, position="alibi", qk_norm=True, log_n=True)
    x = torch.randn(1, LENGTH, WIDTH)
    changed = x.clone()
    changed[:, 5:] += 1
    before, after = layer(x, is_causal=True), layer(changed, is_causal=True)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_dropout_acts_in_training_only():
    layer = SoftmaxAttention(WIDTH, HEADS, dropout=0.9)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_autocast_gives_the_low_precision_result():
    layer = SoftmaxAttention(WIDTH, HEADS, qk_norm=True, log_n=True, position="alibi")
    x = torch.randn(BATCH, LENGTH, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x, attn_mask=PADDING, is_causal=True)
    assert output.dtype == torch.bfloat16
    expected = layer(x, attn_mask=PADDING, is_causal=True)
    torch.testing.assert_close(output.float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 10}, "embed_dim: 10 given"),
        ({"num_heads": 0}, "num_heads: 0 given"),
        ({"embed_dim": 15, "position": "rotary"}, "position: 'rotary' given with 5 channels"),
        ({"position": "learned"}, "position: 'learned' given"),
        ({"dropout": 1.0}, "dropout: 1.0 given"),
    ],
)
def test_bad_settings_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SoftmaxAttention(**{"embed_dim": WIDTH, "num_heads": HEADS, **arguments})


@pytest.mark.parametrize(
    ("log_n", "mask", "message"),
    [
        (False, torch.ones(3, 5, dtype=torch.bool), r"attn_mask: shape \(3, 5\)"),
        (False, torch.ones(LENGTH, LENGTH, dtype=torch.int64), "attn_mask: torch.int64 given"),
        (True, torch.zeros(LENGTH, LENGTH), "attn_mask: torch.float32 given, boolean expected"),
    ],
)
def test_a_bad_mask_names_the_argument(log_n, mask, message):
    layer = SoftmaxAttention(WIDTH, HEADS, log_n=log_n)
    with pytest.raises(ValueError, match=f"^{message}"):
        layer(torch.randn(1, LENGTH, WIDTH), attn_mask=mask)
