"""`swap(model, head=...)` in the language models of Transformers."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from heterodox.layers import FourierHead
from heterodox.swapping import head_penalties, swap

transformers = pytest.importorskip("transformers", minversion="4.53")

BINS = 40


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(kind: str) -> nn.Module:
    sizes = {"pad_token_id": 0, "eos_token_id": None, "bos_token_id": None}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=BINS, n_positions=16, n_embd=8, n_layer=1, n_head=2, **sizes
        )
        return transformers.GPT2LMHeadModel(config)
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=BINS, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
            decoder_start_token_id=0, **sizes,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config)
    config = transformers.LlamaConfig(
        vocab_size=BINS, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, **sizes,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("kind", ["gpt2", "t5", "llama"])
def test_the_language_model_head_is_found_and_trains_with_its_penalty(kind):
    model = build(kind)
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    report = swap(model, head="fourier", num_frequencies=4, regularization=1e-2)
    assert [replaced.name for replaced in report.replaced] == ["lm_head"]
    assert isinstance(model.get_output_embeddings(), FourierHead)
    assert any("untied" in note for note in report.notes) == tied
    tokens = torch.randint(1, BINS, (2, 7))
    with head_penalties(model) as penalties:
        output = model(input_ids=tokens, labels=tokens)
    assert output.logits.shape == (2, 7, BINS)
    (penalty,) = penalties
    (output.loss + penalty).backward()
    with_penalty = model.lm_head.linear.weight.grad.clone()
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert not torch.equal(model.lm_head.linear.weight.grad, with_penalty)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_tied_head_is_not_tied_again(kind):
    model = build(kind)
    assert model.config.tie_word_embeddings
    swap(model, head="fourier")
    assert not model.config.tie_word_embeddings
    model.tie_weights()
    assert isinstance(model.lm_head, FourierHead)


@pytest.mark.parametrize("kind", ["gpt2", "t5", "llama"])
def test_a_saved_model_comes_back_by_swapping_before_loading(kind, tmp_path):
    model = build(kind).eval()
    swap(model, head="fourier", num_frequencies=4)
    model.save_pretrained(tmp_path)
    other = build(kind).eval()
    swap(other, head="fourier", num_frequencies=4)
    missing, unexpected = other.load_state_dict(
        load_file(tmp_path / "model.safetensors"), strict=False
    )
    assert not unexpected and not any("lm_head" in key for key in missing)
    tokens = torch.randint(1, BINS, (2, 7))
    labels = {"labels": tokens} if kind == "t5" else {}
    logits = [m(input_ids=tokens, **labels).logits for m in (model, other)]
    torch.testing.assert_close(*logits)


def test_generation_runs_with_a_cache():
    model = build("gpt2").eval()
    swap(model, head="fourier", num_frequencies=4)
    tokens = torch.randint(1, BINS, (1, 4))
    generated = model.generate(tokens, max_new_tokens=5, do_sample=False)
    assert generated.shape == (1, 9)
    for length in range(4, 9):
        logits = model(generated[:, :length]).logits[0, -1]
        assert logits.argmax() == generated[0, length]


def test_bf16_weights_give_bf16_logits_near_those_of_float32():
    model = build("gpt2").eval()
    swap(model, head="fourier", num_frequencies=4)
    tokens = torch.randint(1, BINS, (2, 7))
    expected = model(tokens).logits
    logits = model.to(torch.bfloat16)(tokens).logits
    assert logits.dtype == torch.bfloat16
    assert F.mse_loss(logits.float(), expected) < 0.05 * expected.var()
