import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.attention import ATTENTION, ATTENTION_LAYOUTS
from heterodox.attention.slot import softmax
from heterodox.models.transformer import (
    Block,
    DecoderLM,
    SwiGLU,
    attention_of_layers,
    check_decoder,
    feed_forward,
    initialise,
    token_losses,
)
from heterodox.training.seeding import seeded


class Doubling(nn.Module):
    """Stands in for attention, so that the block's sums can be written down."""

    def forward(self, x, attn_mask=None, is_causal=False):
        return 2 * x


def decoder(seed=0, **options):
    sizes = {"vocabulary": 11, "width": 12, "layers": 2, "heads": 3, "length": 8}
    with seeded(seed):
        return DecoderLM(**{**sizes, **options}).eval()


def tokens(length=8, batch=2):
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("hybrid_norm", [False, True])
@pytest.mark.parametrize("layer_scale", [None, 0.25])
def test_the_block_is_the_equation(hybrid_norm, layer_scale):
    mlp = nn.Linear(6, 6)
    block = Block(
        6, Doubling(), mlp, nn.LayerNorm, layer_scale=layer_scale, hybrid_norm=hybrid_norm
    )
    x = 3 * torch.randn(2, 5, 6) + 1
    scale = 1.0 if layer_scale is None else layer_scale
    norm = lambda x: F.layer_norm(x, (6,))  # noqa: E731
    attended = 2 * norm(x)
    if hybrid_norm:
        attended = norm(attended)
    middle = x + scale * attended
    expected = middle + scale * mlp(norm(middle))
    assert torch.allclose(block(x), expected, atol=1e-6)


def test_weights_start_from_a_truncated_normal_and_biases_from_zero():
    model = nn.Sequential(nn.Embedding(500, 40), nn.Linear(40, 500), nn.LayerNorm(500))
    with seeded(0):
        initialise(model)
    for weight in (model[0].weight, model[1].weight):
        assert weight.abs().max() <= 0.04
        # A normal cut at two deviations has 0.8796 of its deviation.
        assert weight.std().item() == pytest.approx(0.02 * 0.8796, rel=0.02)
    assert model[1].bias.abs().max() == 0
    assert model[2].weight.min() == 1


def test_projections_of_the_attention_have_no_bias_and_the_mlp_is_four_times_as_wide():
    names = dict(decoder().named_parameters())
    assert not any(".attention." in name and name.endswith("bias") for name in names)
    assert names["blocks.0.mlp.0.weight"].shape == (48, 12)


@pytest.mark.parametrize("position", ["rotary", "alibi", "learned", "none"])
@pytest.mark.parametrize("attention", ["softmax", "sigmoid"])
def test_later_tokens_do_not_change_earlier_logits(attention, position):
    model = decoder(attention=attention, position=position)
    first, changed = tokens(), tokens()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = model(first), model(changed)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-4)


@pytest.mark.parametrize("position", ["rotary", "alibi", "none"])
@pytest.mark.parametrize("attention", ["softmax", "sigmoid", "softplus-lssa"])
def test_it_runs_beyond_the_training_length(attention, position):
    if attention == "softplus-lssa" and position == "alibi":
        pytest.skip("softplus attention has no additive bias")
    model = decoder(attention=attention, position=position)
    long = tokens(length=32)
    assert torch.allclose(model(long)[:, :8], model(long[:, :8]), atol=1e-5)


def test_learned_positions_end_at_the_training_length():
    model = decoder(position="learned")
    assert model(tokens(8)).shape == (2, 8, 11)
    with pytest.raises(ValueError, match=r"^tokens: length 9 given, at most 8 expected"):
        model(tokens(9))


def test_without_positions_the_order_of_earlier_tokens_is_invisible_and_with_them_it_is_not():
    first = torch.arange(8)[None]
    swapped = first[:, [1, 0, 2, 3, 4, 5, 6, 7]]
    for position, invisible in (("none", True), ("rotary", False), ("learned", False)):
        # float64: at initialisation attention is nearly uniform, and the difference small
        model = decoder(position=position, layers=1).double()
        difference = (model(first) - model(swapped))[:, -1].abs().max()
        assert (difference < 1e-12) == invisible, position


def test_the_readout_is_the_embedding_only_when_tied():
    tied, free = decoder(), decoder(tie_embeddings=False)
    assert tied.readout.weight is tied.embedding.weight
    assert free.readout.weight is not free.embedding.weight


def test_attention_norms_are_those_of_the_attention_outputs():
    model = decoder(attention="sigmoid", hybrid_norm=True, layer_scale=0.1)
    x, expected = model.embedding(tokens()), []
    for block in model.blocks:
        attended = block.attention(block.attention_norm(x), is_causal=True)
        expected.append(attended.norm(dim=-1).mean().item())
        x = block(x, is_causal=True)
    assert model.attention_norms(tokens()) == pytest.approx(expected, rel=1e-5)
    assert len(model.blocks[0].attention._forward_hooks) == 0


def test_layers_may_differ():
    model = decoder(attention=["softmax", "linear"], layers=2)
    kinds = [type(block.attention).__name__ for block in model.blocks]
    assert kinds == ["SoftmaxAttention", "LinearAttention"]
    with pytest.raises(ValueError, match=r"^attention: 2 layers given, 3 expected"):
        decoder(attention=["softmax", "linear"], layers=3)


def test_hybrids_put_softmax_where_the_paper_does():
    names = ATTENTION_LAYOUTS["deltanet-global"](24)
    assert [i for i, name in enumerate(names, start=1) if name == "softmax"] == [2, 13]
    window = ATTENTION_LAYOUTS["deltanet-window"](4)
    assert window == ["deltanet", "softmax-window", "deltanet", "softmax-window"]
    for name in ATTENTION_LAYOUTS:
        assert attention_of_layers(name, 5) == [ATTENTION[n] for n in ATTENTION_LAYOUTS[name](5)]


def test_the_gated_mlp_is_its_equation_and_as_large_as_the_plain_one():
    mlp = SwiGLU(12)
    x = torch.randn(2, 5, 12)
    gate, up = mlp.gate_and_up.weight.chunk(2)
    expected = (F.silu(x @ gate.T) * (x @ up.T)) @ mlp.down.weight.T
    torch.testing.assert_close(mlp(x), expected)
    plain = sum(layer.weight.numel() for layer in feed_forward(12) if hasattr(layer, "weight"))
    assert sum(parameter.numel() for parameter in mlp.parameters()) == plain


def test_a_block_without_an_mlp_is_only_its_attention():
    block = Block(6, Doubling(), None, nn.LayerNorm)
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(block(x), x + 2 * F.layer_norm(x, (6,)))


def test_slots_take_callables():
    model = decoder(attention=softmax, norm=nn.LayerNorm)
    assert isinstance(model.norm, nn.LayerNorm)
    assert torch.isfinite(model(tokens())).all()


def test_a_saved_model_comes_back(tmp_path):
    model = decoder(attention="sigmoid", norm="rms", layer_scale=0.5, position="alibi")
    model.save_pretrained(tmp_path)
    loaded = DecoderLM.from_pretrained(tmp_path)
    assert type(loaded.blocks[0].attention).__name__ == "SigmoidAttention"
    assert torch.equal(loaded(tokens()), model(tokens()))
    assert loaded.readout.weight is loaded.embedding.weight


def test_a_model_with_an_unnamed_slot_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"^attention: .* a name expected"):
        decoder(attention=softmax).save_pretrained(tmp_path)


def test_token_losses_average_over_all_positions():
    model = decoder()
    x, y = tokens(), tokens().flip(1)
    every = [F.cross_entropy(model(x)[b, i], y[b, i]) for b in range(2) for i in range(8)]
    assert torch.allclose(token_losses(model, x, y), torch.stack(every).mean())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocabulary": 0}, "vocabulary: 0 given, a positive number expected"),
        ({"heads": 5}, "heads: 5 given, a divisor of the width 12"),
        ({"heads": 4}, "heads: 4 given, an even width / heads expected"),
        ({"position": "absolute"}, "position: 'absolute' given, one of"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(change, message):
    sizes = {"vocabulary": 11, "width": 12, "layers": 2, "heads": 3, "length": 8}
    with pytest.raises(ValueError, match=f"^{message}"):
        check_decoder(**{**sizes, "position": "rotary", **change})
    with pytest.raises(ValueError, match=f"^{message}"):
        decoder(**change)


def test_an_unknown_attention_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^attention: 'sigmod' given.*did you mean 'sigmoid'"):
        decoder(attention="sigmod")


def test_feed_forward_acts_on_each_position_alone():
    mlp = feed_forward(6)
    x = torch.randn(2, 5, 6)
    assert torch.allclose(mlp(x)[:, 3], mlp(x[:, 3]), atol=1e-6)
