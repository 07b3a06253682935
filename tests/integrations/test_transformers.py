"""Transformers' own eager attention, with its softmax replaced by a dense formula, is the truth."""

import builtins
import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.attention import ATTENTION_FUNCTIONS
from heterodox.integrations.transformers import attention_forward, register

transformers = pytest.importorskip("transformers", minversion="4.53")

LENGTH = 24  # the trained length, longer than any input here
METHODS = ("sigmoid", "softplus", "softplus-lssa", "linear")


@pytest.fixture(autouse=True)
def _registered():
    register()


def build(kind: str, implementation: str, **settings):
    sizes = {"attn_implementation": implementation, "heterodox_power": 5, **settings}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=50, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2, **sizes
        )
        cls = transformers.GPT2LMHeadModel
    else:
        llama = kind == "llama"
        config_cls = transformers.LlamaConfig if llama else transformers.MistralConfig
        config = config_cls(
            vocab_size=50,
            max_position_embeddings=LENGTH,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            **({} if llama else {"sliding_window": 5}),
            **sizes,
        )
        cls = transformers.LlamaForCausalLM if llama else transformers.MistralForCausalLM
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 0, None, None
    torch.manual_seed(0)
    model = cls(config).double().eval()
    for parameter in model.parameters():  # larger than at initialisation, so that attention matters
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def tokens(batch: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(1, 50, (batch, length), generator=torch.Generator().manual_seed(1))


def dense_weights(method, query, key, allowed, scaling):
    if method == "sigmoid":
        return allowed * torch.sigmoid(query @ key.mT * scaling - math.log(LENGTH))
    if method == "linear":
        weights = allowed * ((F.elu(query) + 1) @ (F.elu(key) + 1).mT)
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)
    cosine = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT
    seen = allowed.sum(-1, keepdim=True).double().clamp(min=1)  # a padded row sees none
    a = allowed * torch.log1p(torch.exp(math.log(query.shape[-1]) * seen.log() * cosine))
    weights = a / a.sum(-1, keepdim=True).clamp(min=1e-300)
    if method == "softplus":
        b = torch.relu(seen * weights - (seen > 3).double()) ** 5
        weights = b / b.sum(-1, keepdim=True).clamp(min=1e-300)
    return weights


def use_dense(monkeypatch, kind, method):
    def eager(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        if attention_mask is not None:
            allowed = attention_mask[..., : key.shape[2]] > -1
        scaling = scaling or query.shape[-1] ** -0.5
        weights = dense_weights(method, query, key, allowed, scaling)
        return (weights @ value).transpose(1, 2), weights

    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    monkeypatch.setattr(module, "eager_attention_forward", eager)


# Multi-head attention; grouped queries; grouped queries that see a window of 5 tokens.
all_models = pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
all_methods = pytest.mark.parametrize("method", METHODS)


def test_every_method_but_softmax_is_registered():
    assert register() == tuple(
        f"heterodox-{name}" for name in ATTENTION_FUNCTIONS if name != "softmax"
    )
    assert set(METHODS) == set(ATTENTION_FUNCTIONS) - {"softmax"}


@all_models
@all_methods
@pytest.mark.parametrize("padded", [False, True])
def test_logits_equal_the_dense_formula(monkeypatch, kind, method, padded):
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[1, :3] = 0 if padded else 1
    model = build(kind, f"heterodox-{method}")
    use_dense(monkeypatch, kind, method)
    truth = build(kind, "eager")
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        expected = truth(ids, attention_mask=mask).logits
        softmax = build(kind, "sdpa")(ids, attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(logits[real], expected[real], rtol=1e-9, atol=1e-9)
    assert (logits - softmax)[real].abs().max() > 0.01


@all_models
@all_methods
def test_padding_on_the_left_has_no_influence(kind, method):
    model = build(kind, f"heterodox-{method}")
    ids = tokens(1, 6)
    padded = torch.cat([torch.full((1, 4), 7), ids], dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 6])
    positions = torch.cat([torch.zeros(1, 4), torch.arange(6)[None]], dim=1).long()
    with torch.no_grad():
        alone = model(ids).logits
        beside = model(padded, attention_mask=mask, position_ids=positions).logits[:, 4:]
    torch.testing.assert_close(beside, alone, rtol=1e-9, atol=1e-9)


@all_models
@all_methods
def test_gradients_equal_those_of_the_dense_formula(monkeypatch, kind, method):
    ids = tokens()
    model = build(kind, f"heterodox-{method}")
    use_dense(monkeypatch, kind, method)
    truth = build(kind, "eager")
    for each in (model, truth):
        each(ids, labels=ids).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    expected = [parameter.grad for parameter in truth.parameters()]
    torch.testing.assert_close(gradients, expected, rtol=1e-6, atol=1e-9)


@all_models
@all_methods
@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("padded", [False, True])
def test_greedy_decoding_with_a_cache_is_greedy_decoding_without(kind, method, cache, padded):
    model = build(kind, f"heterodox-{method}")
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :2] = 0 if padded else 1
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    cached = model.generate(ids, use_cache=True, cache_implementation=cache, **options)
    plain = model.generate(ids, use_cache=False, **options)
    assert cached.sequences.tolist() == plain.sequences.tolist()
    for step, expected in zip(cached.scores, plain.scores, strict=True):
        torch.testing.assert_close(step, expected, rtol=1e-8, atol=1e-8)


def test_gradient_checkpointing_changes_nothing():
    ids, gradients = tokens(), []
    for checkpointing in (False, True):
        model = build("llama", "heterodox-softplus").train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_sigmoid_takes_its_length_from_the_config_not_from_the_call():
    ids = tokens()
    with torch.no_grad():
        default = build("llama", "heterodox-sigmoid")(ids).logits
        named = build("llama", "heterodox-sigmoid", heterodox_sequence_length=LENGTH)(ids).logits
        other = build("llama", "heterodox-sigmoid", heterodox_sequence_length=9)(ids).logits
    assert torch.equal(default, named)
    assert (default - other).abs().max() > 0.01


def test_settings_survive_saving(tmp_path):
    model = build("llama", "heterodox-sigmoid", heterodox_sequence_length=9)
    model.save_pretrained(tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path, attn_implementation="heterodox-sigmoid", torch_dtype=torch.float64
    )
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def test_bidirectional_models_see_the_future():
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        attn_implementation="heterodox-sigmoid",
        heterodox_sequence_length=5,
    )
    model = transformers.ViTModel(config).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[1, :, :4] = images[0, :, :4]  # the last two of four patches differ
    with torch.no_grad():
        hidden = model(images).last_hidden_state
    assert not torch.allclose(hidden[0, 1], hidden[1, 1])


def test_dropout_is_off_in_eval_mode_and_on_in_training():
    model = build("llama", "heterodox-sigmoid", attention_dropout=0.5)
    ids = tokens()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)


class Layer(nn.Module):
    def __init__(self, config=None):
        super().__init__()
        self.config = config


def call(name="sigmoid", config=None, mask=None, **keywords):
    x = torch.randn(1, 2, 4, 8)
    return attention_forward(name, Layer(config), x, x, x, mask, **keywords)


@pytest.mark.parametrize(
    "argument", ["softcap", "s_aux", "sinks", "position_bias", "head_mask", "output_attentions"]
)
def test_what_would_be_ignored_is_refused(argument):
    config = transformers.LlamaConfig()
    call(config=config, **{argument: None})
    with pytest.raises(ValueError, match=f"^{argument}: "):
        call(config=config, **{argument: torch.ones(1)})


def test_gemma2_is_refused_for_its_soft_cap():
    config = transformers.Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        attn_implementation="heterodox-sigmoid",
    )
    with pytest.raises(ValueError, match=r"^softcap: "):
        transformers.Gemma2ForCausalLM(config)(tokens())


def test_a_config_without_a_length_is_refused():
    with pytest.raises(ValueError, match=r"^heterodox_sequence_length: "):
        call(config=transformers.ViTConfig())


def test_softplus_takes_float_masks_of_only_minus_infinity():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4, 8)
    causal = torch.full((4, 4), torch.finfo(torch.float32).min).triu(1)[None, None]
    masked, _ = attention_forward("softplus", Layer(), x, x, x, causal)
    expected, _ = attention_forward("softplus", Layer(), x, x, x, None, is_causal=True)
    torch.testing.assert_close(masked, expected)


def test_softplus_refuses_other_float_masks():
    with pytest.raises(ValueError, match=r"^attn_mask: "):
        call("softplus", mask=torch.randn(1, 1, 4, 4))


def test_missing_transformers_says_what_to_install(monkeypatch):
    real_import = builtins.__import__

    def without(name, *args, **keywords):
        if name == "transformers":
            raise ImportError(name)
        return real_import(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install .*"heterodox\[transformers\]"'):
        register()
