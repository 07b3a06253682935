"""The audit against norms that are computed by hand, for every way to write an attention layer."""

import math

import pytest
import torch
from torch import nn

from heterodox.attention import SigmoidAttention, SoftmaxAttention, SoftplusAttention
from heterodox.compression.low_rank import audit, degree_for, efficiency_norms
from heterodox.models import DecoderLM
from heterodox.training.seeding import seeded

NEEDS_TRANSFORMERS = "needs transformers"


def heads_of(x, heads):
    """(batch, length, width) -> (heads, batch, length, head_dim)"""
    return x.unflatten(-1, (heads, -1)).permute(2, 0, 1, 3)


def assert_norms(found, query, key, scale=None):
    """`found` against queries and keys (heads, batch, length, head_dim)."""
    assert [norms.head for norms in found] == list(range(len(query)))
    dim, length = query.shape[-1], key.shape[-2]
    for norms, q, k in zip(found, query, key, strict=True):
        assert norms.query == pytest.approx(q.abs().max().item(), rel=1e-5)
        assert norms.key == pytest.approx(k.abs().max().item(), rel=1e-5)
        assert norms.threshold == pytest.approx(math.sqrt(math.log(length)))
        assert norms.below == (max(norms.query, norms.key) < norms.threshold)
        logits = (dim**-0.5 if scale is None else scale) * (q @ k.mT).abs().max().item()
        assert logits <= norms.bound * (1 + 1e-5)
        assert norms.bound <= (dim**-0.5 if scale is None else scale) * (
            q.norm(dim=-1).max() * k.norm(dim=-1).max()
        ) * (1 + 1e-5)
        degree = degree_for(norms.bound, 1e-3)
        assert norms.rank == math.comb(dim + degree + degree % 2, dim)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kdim", [None, 5])
def test_torch_s_multihead_attention_is_projected_as_torch_does(batch_first, bias, kdim):
    with seeded(0):
        layer = nn.MultiheadAttention(6, 2, kdim=kdim, bias=bias, batch_first=batch_first)
        if bias:
            nn.init.normal_(layer.in_proj_bias)
        query, key = torch.randn(3, 4, 6), torch.randn(3, 7, kdim or 6)
        value = torch.randn(3, 7, 6)
    weights = layer.in_proj_weight.chunk(3) if kdim is None else [layer.q_proj_weight]
    weights = weights if kdim is None else [*weights, layer.k_proj_weight]
    biases = layer.in_proj_bias.chunk(3) if bias else (0.0, 0.0)
    expected = query @ weights[0].T + biases[0], key @ weights[1].T + biases[1]
    inputs = [x if batch_first else x.transpose(0, 1) for x in (query, key, value)]
    assert_norms(audit(layer, tuple(inputs)), *(heads_of(x, 2) for x in expected))


def test_a_stack_of_torch_s_layers_is_seen_in_spite_of_its_fast_path():
    with seeded(0):
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.TransformerEncoder(block, 2).eval()
        x = torch.randn(2, 5, 8)
    found = audit(model, {"src": x, "src_key_padding_mask": torch.zeros(2, 5, dtype=torch.bool)})
    names = [(norms.layer, norms.head) for norms in found]
    assert names == [(f"layers.{n}.self_attn", head) for n in (0, 1) for head in (0, 1)]
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("layer_type", [SoftmaxAttention, SigmoidAttention, SoftplusAttention])
def test_this_library_s_layers_are_measured_after_their_norm(layer_type, qk_norm):
    options = {} if layer_type is SoftplusAttention else {"qk_norm": qk_norm}
    if layer_type is SigmoidAttention:
        options["sequence_length"] = 5
    with seeded(0):
        layer = layer_type(8, 2, **options)
        x = 3 * torch.randn(2, 5, 8)
    query, key, _ = (heads_of(part, 2) for part in layer.qkv(x).chunk(3, dim=-1))
    if qk_norm and options:
        query, key = layer.q_norm(query), layer.k_norm(key)
    assert_norms(audit(layer, x), query, key)


def test_a_language_model_is_audited_layer_by_layer_and_left_as_it_was():
    with seeded(0):
        model = DecoderLM(11, width=8, layers=2, heads=2, length=6)
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    found = audit(model, torch.arange(6)[None])
    assert [norms.layer for norms in found] == 2 * ["blocks.0.attention"] + 2 * [
        "blocks.1.attention"
    ]
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_largest_of_several_calls_counts():
    with seeded(0):
        layer = SoftmaxAttention(8, 2)
        x = torch.randn(1, 5, 8)
    twice = nn.Sequential(layer, nn.Linear(8, 8), layer)
    inside = twice[1](layer(x))
    both = audit(twice, x)
    for norms, first, second in zip(both, audit(layer, x), audit(layer, inside), strict=True):
        assert norms.query == max(first.query, second.query)
        assert norms.key == max(first.key, second.key)


class GroupedAttention(nn.Module):
    """Four heads of queries on two of keys."""

    def __init__(self):
        super().__init__()
        self.head_dim, self.scaling = 3, 0.7
        self.q_proj, self.k_proj = nn.Linear(8, 12), nn.Linear(8, 6)

    def forward(self, x):
        return self.k_proj(x).sum() + self.q_proj(x).sum()


def test_heads_that_share_keys_are_bounded_by_them():
    with seeded(0):
        layer, x = GroupedAttention(), torch.randn(2, 5, 8)
    query = heads_of(layer.q_proj(x), 4)
    key = heads_of(layer.k_proj(x), 2).repeat_interleave(2, dim=0)
    assert_norms(audit(layer, x), query, key, scale=0.7)


TINY = {
    "bert": ("BertConfig", "BertModel", {"intermediate_size": 16}),
    "llama": ("LlamaConfig", "LlamaModel", {"intermediate_size": 16, "num_key_value_heads": 1}),
    "opt": ("OPTConfig", "OPTModel", {"ffn_dim": 16, "word_embed_proj_dim": 8}),
    "qwen3": (
        "Qwen3Config",
        "Qwen3Model",
        {"intermediate_size": 16, "num_key_value_heads": 2, "head_dim": 4},
    ),
    "gpt2": ("GPT2Config", "GPT2Model", {}),
    "neox": ("GPTNeoXConfig", "GPTNeoXModel", {"intermediate_size": 16}),
    "phi3": (
        "Phi3Config",
        "Phi3Model",
        {"intermediate_size": 16, "num_key_value_heads": 1, "pad_token_id": 0},
    ),
}


@pytest.mark.parametrize("family", TINY)
def test_hugging_face_models_are_audited_as_their_attention_sees_them(family):
    transformers = pytest.importorskip("transformers", reason=NEEDS_TRANSFORMERS)
    config_name, model_name, options = TINY[family]
    config = getattr(transformers, config_name)(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        **options,
    )
    seen = []

    def spy(module, query, key, value, attention_mask, scaling=None, **kwargs):
        seen.append((query, key, scaling))
        return torch.zeros_like(query).transpose(1, 2), None

    from transformers import AttentionInterface

    AttentionInterface.register("spy", spy)
    with seeded(0):
        config._attn_implementation = "spy"
        model = getattr(transformers, model_name)(config)
        for parameter in model.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    tokens = {"input_ids": torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])}
    found = audit(model, tokens)
    assert len(found) == 4 and len(seen) == 2
    for layer, (query, key, scaling) in enumerate(seen):
        groups = query.shape[1] // key.shape[1]
        key = key.repeat_interleave(groups, 1).transpose(0, 1)
        query = query.transpose(0, 1)
        for head in (0, 1):
            norms = found[2 * layer + head]
            # A rotation by position changes entries and keeps norms.
            bound = (query[head].norm(dim=-1).amax(-1) * key[head].norm(dim=-1).amax(-1)).max()
            assert norms.bound <= scaling * bound.item() * (1 + 1e-5)
            if family in ("bert", "gpt2"):
                assert norms.query == pytest.approx(query[head].abs().max().item(), rel=1e-5)
                assert norms.key == pytest.approx(key[head].abs().max().item(), rel=1e-5)
            logits = (query[head] @ key[head].mT).abs().max().item() * scaling
            assert logits <= norms.bound * (1 + 1e-5)


def test_adapters_of_peft_count():
    transformers = pytest.importorskip("transformers", reason=NEEDS_TRANSFORMERS)
    peft = pytest.importorskip("peft", reason="needs peft")
    with seeded(0):
        config = transformers.GPT2Config(
            vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=8
        )
        model = transformers.GPT2Model(config)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    before = audit(model, tokens)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    fresh = audit(adapted, {"input_ids": tokens})
    assert [(n.query, n.key) for n in fresh] == [(n.query, n.key) for n in before]
    with seeded(1):
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
    trained = audit(adapted, {"input_ids": tokens})
    assert all(n.query > 2 * b.query for n, b in zip(trained, before, strict=True))
    merged = audit(adapted.merge_and_unload(), tokens)
    for own, other in zip(trained, merged, strict=True):
        assert own.query == pytest.approx(other.query, rel=1e-4)
        assert own.key == pytest.approx(other.key, rel=1e-4)


def test_norms_of_one_head_are_those_of_the_products_with_adapters():
    with seeded(0):
        x, query, key = torch.randn(9, 4), torch.randn(4, 3), torch.randn(4, 3)
        a, b = torch.randn(2, 3), torch.randn(4, 2)
    norms = efficiency_norms(x, {"q": query, "k": key, "v": key}, {"k": (a, b)}, alpha=6.0)
    assert norms["query"] == pytest.approx((x @ query).abs().max().item())
    assert norms["key"] == pytest.approx((x @ (key + 3.0 * b @ a)).abs().max().item(), rel=1e-5)
    assert norms["threshold"] == pytest.approx(math.sqrt(math.log(9)))


ONE = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: efficiency_norms(ONE[:0], {"q": ONE, "k": ONE}, {}), "x"),
        (lambda: efficiency_norms(ONE, {"q": ONE}, {}), "weights"),
        (lambda: efficiency_norms(ONE, {"q": ONE, "k": ONE[:1]}, {}), "weights"),
        (lambda: efficiency_norms(ONE, {"q": ONE, "k": ONE}, {"q": (ONE, ONE[:1])}), "adapters"),
        (lambda: audit(nn.Linear(2, 2), ONE), "model"),
        (lambda: audit(SoftmaxAttention(4, 2), torch.ones(1, 0, 4)), "model"),
    ],
)
def test_bad_input_names_the_argument(call, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        call()
