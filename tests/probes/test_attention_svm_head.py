"""Heads of real layers: what is read off them against the attention weights that they report."""

import pytest
import torch
from torch import nn

from heterodox.attention import ATTENTION, SoftmaxAttention
from heterodox.probes.attention_svm import (
    InfeasibleError,
    direction_correlation,
    probe_head,
    solve_attention_svm,
    train_one_layer_attention,
)
from heterodox.training.seeding import seeded

NEEDS_TRANSFORMERS = "needs transformers"


def sequences(count=5, length=6, dim=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, length, dim, generator=generator)


def loud(module):
    """Weights so large that attention is far from uniform, biases that are not zero."""
    with seeded(3), torch.no_grad():
        for w in module.parameters():
            w.copy_(torch.randn_like(w) * (2 * w.shape[-1] ** -0.5 if w.ndim > 1 else 1.0))
    return module.eval()


def check(probe, weights, head, position=-1):
    """`weights` are the layer's own, (sequences, heads, queries, keys)."""
    own = weights[:, head, position, : probe.probabilities.shape[1]]
    torch.testing.assert_close(probe.probabilities.float(), own, rtol=1e-3, atol=1e-5)
    assert torch.equal(probe.selected, own.argmax(-1))
    top = own.topk(2).values
    torch.testing.assert_close(
        probe.margins.float(), (top[:, 0] / top[:, 1]).log(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head", [0, 2])
@pytest.mark.parametrize(
    ("position", "is_causal"), [(-1, False), (2, False), (3, True), (-1, True)]
)
def test_multihead_attention(bias, head, position, is_causal):
    layer = loud(nn.MultiheadAttention(12, 3, bias=bias, batch_first=True))
    x = sequences()
    later = torch.ones(6, 6, dtype=torch.bool).triu(1) if is_causal else None
    _, weights = layer(x, x, x, attn_mask=later, average_attn_weights=False)
    probe = probe_head(layer, x, head, position=position, is_causal=is_causal)
    check(probe, weights, head, position)
    assert probe.weight.shape == (12, 13 if bias else 12)


def test_the_layer_of_this_library():
    layer = loud(SoftmaxAttention(12, 3, bias=True))
    x = sequences()
    query, key, _ = layer.qkv(x).unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
    weights = (query @ key.mT / 2).softmax(-1)
    for head in range(3):
        check(probe_head(layer, x, head), weights.detach(), head)


def hugging_face(name, attention="eager"):
    transformers = pytest.importorskip("transformers", reason=NEEDS_TRANSFORMERS)
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 1}
    few = {**sizes, "intermediate_size": 8, "vocab_size": 5}
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=12, n_head=3, n_layer=1, vocab_size=5)
        config._attn_implementation = attention
        return transformers.GPT2Model(config).h[0].attn
    if name == "opt":
        config = transformers.OPTConfig(**sizes, ffn_dim=8, vocab_size=5, word_embed_proj_dim=12)
        config._attn_implementation = attention
        return transformers.OPTModel(config).decoder.layers[0].self_attn
    if name == "llama":
        config = transformers.LlamaConfig(**few, num_key_value_heads=3)
        config._attn_implementation = attention
        return transformers.LlamaModel(config).layers[0].self_attn
    config = transformers.BertConfig(**few)
    config._attn_implementation = attention
    return transformers.BertModel(config).encoder.layer[0].attention.self


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_layers_of_hugging_face(name, attention):
    x = sequences()
    reporting = loud(hugging_face(name))
    weights = reporting(x, attention_mask=None, output_attentions=True)[1].detach()
    layer = loud(hugging_face(name, attention))
    before = layer.training, {k: v.clone() for k, v in layer.state_dict().items()}
    for head in (0, 2):
        check(probe_head(layer, x, head), weights, head)
    assert layer.training == before[0]
    assert all(torch.equal(layer.state_dict()[k], v) for k, v in before[1].items())


def test_heads_of_the_query_share_those_of_the_key():
    class Grouped(nn.Module):
        num_heads = 4

        def __init__(self):
            super().__init__()
            self.q_proj, self.out_proj = nn.Linear(12, 12), nn.Linear(12, 12)
            self.k_proj, self.v_proj = nn.Linear(12, 6), nn.Linear(12, 6)

        def forward(self, x):
            query = self.q_proj(x).unflatten(-1, (4, 3)).transpose(1, 2)
            key, value = (
                p(x).unflatten(-1, (2, 3)).transpose(1, 2) for p in (self.k_proj, self.v_proj)
            )
            index = [0, 0, 1, 1]
            self.seen = (query @ key[:, index].mT / 3**0.5).softmax(-1)
            return self.out_proj((self.seen @ value[:, index]).transpose(1, 2).flatten(2))

    layer, x = loud(Grouped()), sequences()
    probes = [probe_head(layer, x, head) for head in range(4)]
    layer(x)
    for head, probe in enumerate(probes):
        check(probe, layer.seen.detach(), head)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SoftmaxAttention(12, 3, position="rotary"),
        lambda: SoftmaxAttention(12, 3, position="alibi"),
        lambda: SoftmaxAttention(12, 3, qk_norm=True),
        lambda: SoftmaxAttention(12, 3, log_n=True),
        lambda: ATTENTION["sigmoid"](12, 3, sequence_length=6, position=None),
        lambda: ATTENTION["softplus"](12, 3, sequence_length=6, position=None),
        lambda: nn.MultiheadAttention(12, 3, add_bias_kv=True),
        lambda: nn.MultiheadAttention(12, 3, add_zero_attn=True),
        lambda: nn.MultiheadAttention(12, 3, kdim=5),
        lambda: nn.Linear(12, 12),
        lambda: nn.TransformerEncoderLayer(12, 3),
        lambda: hugging_face("llama"),
    ],
)
def test_heads_whose_logits_are_no_product_are_refused(make):
    with pytest.raises(ValueError, match=r"^module: .* expected$"):
        probe_head(make(), sequences())


def test_a_layer_that_needs_more_than_a_sequence_is_refused():
    class Cross(SoftmaxAttention):
        def forward(self, x, memory):
            return super().forward(x + memory)

    with pytest.raises(ValueError, match=r"^module: Cross given, which fails .* expected$"):
        probe_head(Cross(12, 3), sequences())


@pytest.mark.parametrize("norm", ["frobenius", "nuclear"])
def test_the_svm_is_that_of_the_selection(norm):
    layer, x = loud(nn.MultiheadAttention(12, 3, bias=False, batch_first=True)), sequences()
    probe = probe_head(layer, x, 1, position=2, norm=norm)
    svm = solve_attention_svm(x, probe.selected, x[:, 2], norm=norm)
    torch.testing.assert_close(probe.svm.weight, svm.weight, rtol=1e-4, atol=1e-4)
    assert probe.correlation == pytest.approx(
        direction_correlation(probe.weight, svm.weight), abs=1e-4
    )


def test_what_the_sequences_do_not_see_counts_in_one_correlation_only():
    layer = nn.MultiheadAttention(12, 1, bias=False, batch_first=True)
    x = sequences(dim=12)
    x[..., 9:] = 0
    tokens, queries = x.double(), x[:, -1].double()
    svm = solve_attention_svm(tokens, torch.tensor([0, 1, 2, 3, 4]), queries)
    unseen = torch.zeros(12, 12, dtype=torch.float64)
    unseen[9:, 9:] = 5.0
    weight = svm.weight / svm.weight.norm() + unseen / unseen.norm()
    u, s, vt = torch.linalg.svd(weight)
    with torch.no_grad():  # W = W_kᵀ W_q / √12
        layer.in_proj_weight[:12] = ((12**0.5 * s).sqrt()[:, None] * vt).float()
        layer.in_proj_weight[12:24] = ((12**0.5 * s).sqrt()[:, None] * u.mT).float()
    probe = probe_head(layer, x, norm="frobenius")
    torch.testing.assert_close(probe.weight, weight, rtol=0, atol=1e-6)
    assert probe.selected.tolist() == [0, 1, 2, 3, 4]
    assert probe.correlation == pytest.approx(2**-0.5, abs=1e-4)
    assert probe.span_correlation == pytest.approx(1, abs=1e-4)


def test_a_head_trained_as_in_the_theory_is_found_at_its_svm():
    x = nn.functional.normalize(sequences(6, 8, 12, seed=4).double(), dim=-1)
    labels = torch.tensor([1, -1, 1, -1, 1, -1])
    path = train_one_layer_attention(x, labels, torch.ones(12), x[:, -1], parameterization="KQ")
    u, s, vt = torch.linalg.svd(path.weight)
    layer = SoftmaxAttention(12, 1).double()
    with torch.no_grad():
        layer.qkv.weight[:12] = (12**0.5 * s).sqrt()[:, None] * vt
        layer.qkv.weight[12:24] = (12**0.5 * s).sqrt()[:, None] * u.mT
    probe = probe_head(layer, x)
    assert torch.equal(probe.selected, path.selected)
    assert probe.correlation > 0.97
    assert probe.span_correlation >= probe.correlation
    assert probe.correlation > probe_head(layer, x, norm="frobenius").correlation + 0.02


def test_a_token_that_occurs_twice_cannot_be_separated():
    layer, x = loud(nn.MultiheadAttention(12, 3, batch_first=True)), sequences()
    chosen = probe_head(layer, x).selected
    other = (chosen[0] + 1) % 5
    x[0, other] = x[0, chosen[0]]
    with pytest.raises(InfeasibleError, match=r"^selected: "):
        probe_head(layer, x)


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("x", {"x": torch.zeros(5, 6, 7)}),
        ("x", {"x": torch.zeros(6, 12)}),
        ("x", {"x": torch.zeros(0, 6, 12)}),
        ("head", {"head": 3}),
        ("head", {"head": -1}),
        ("position", {"position": 6}),
        ("position", {"position": -7}),
        ("position", {"position": 0, "is_causal": True}),
        ("norm", {"norm": "l2"}),
        ("tol", {"tol": 2.0}),
    ],
)
def test_bad_input_names_the_argument(argument, changes):
    given = {"module": nn.MultiheadAttention(12, 3), "x": sequences()}
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected$"):
        probe_head(**{**given, **changes})
