"""Models of Hugging Face as utilities: the same sequences as their own generation."""

import pytest
import torch

from heterodox.integrations.transformers_decoding import model_utility
from heterodox.probes.decoding import beam_search, greedy, sample, sequence_log_probability
from heterodox.training.seeding import seeded

transformers = pytest.importorskip("transformers")

EOS = 1


@pytest.fixture(scope="module")
def causal():
    config = transformers.GPT2Config(
        vocab_size=12,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    with seeded(0):
        model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data.mul_(6)
    return model.double().eval()


@pytest.fixture(scope="module")
def encoder_decoder():
    config = transformers.BartConfig(
        vocab_size=12,
        max_position_embeddings=64,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=EOS,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        init_std=0.5,
    )
    with seeded(0):
        return transformers.BartForConditionalGeneration(config).double().eval()


SOURCE = torch.tensor([[5, 6, 7, 8]])


def new_tokens(model, **options):
    output = model.generate(SOURCE, attention_mask=torch.ones_like(SOURCE), **options)[0].tolist()
    start = 1 if model.config.is_encoder_decoder else SOURCE.shape[1]
    return output[start:]


@pytest.mark.parametrize("kind", ["causal", "encoder_decoder"])
def test_greedy_decoding_is_that_of_hugging_face(kind, request):
    model = request.getfixturevalue(kind)
    expected = new_tokens(model, max_new_tokens=12, do_sample=False, num_beams=1)
    assert greedy(model_utility(model, SOURCE), EOS, 12) == expected


@pytest.mark.parametrize("kind", ["causal", "encoder_decoder"])
def test_a_beam_finds_what_has_at_least_the_probability_of_hugging_faces(kind, request):
    model = request.getfixturevalue(kind)
    utility = model_utility(model, SOURCE)
    theirs = new_tokens(
        model,
        max_new_tokens=8,
        do_sample=False,
        num_beams=3,
        length_penalty=0.0,
        early_stopping="never",
    )
    sequence, score = beam_search(utility, 3, EOS, 8)
    assert score == pytest.approx(sequence_log_probability(utility, sequence).item())
    assert score >= sequence_log_probability(utility, theirs).item() - 1e-9


@pytest.mark.parametrize("kind", ["causal", "encoder_decoder"])
def test_cached_utilities_are_those_of_the_whole_sequence(kind, request):
    model = request.getfixturevalue(kind)
    utility = model_utility(model, SOURCE)
    prefixes = [torch.zeros(2, 0, dtype=torch.int64), torch.tensor([[3], [4]])]
    prefixes += [torch.tensor([[4, 9], [3, 2], [3, 5]]), torch.tensor([[3, 5, 1]])]
    for prefix in prefixes:
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                start = torch.full((len(prefix), 1), 2)
                output = model(
                    SOURCE.expand(len(prefix), -1),
                    decoder_input_ids=torch.cat((start, prefix), dim=1),
                )
            else:
                output = model(torch.cat((SOURCE.expand(len(prefix), -1), prefix), dim=1))
        torch.testing.assert_close(utility(prefix), output.logits[:, -1])
    assert len(sample(utility, EOS, 6, count=3)) == 3


def test_bad_input_names_the_argument(causal, encoder_decoder):
    with pytest.raises(ValueError, match=r"^attention_mask: .*expected"):
        model_utility(causal, SOURCE, torch.ones_like(SOURCE))
    with pytest.raises(ValueError, match=r"^context: .*expected"):
        model_utility(causal, SOURCE.expand(2, -1))
    with pytest.raises(ValueError, match=r"^input_ids: .*expected"):
        model_utility(encoder_decoder, SOURCE.expand(2, -1))
