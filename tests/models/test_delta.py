"""The DeltaNet language model: which layer is what, how it starts, and that it is causal."""

import pytest
import torch
from torch import nn

from heterodox.attention import DeltaNet, SoftmaxAttention
from heterodox.attention.causal import CausalMixer
from heterodox.models.delta import delta_net_language_model
from heterodox.models.transformer import SwiGLU
from heterodox.training.seeding import seeded


def make(**options):
    with seeded(0):
        return delta_net_language_model(11, 64, 4, 2, 16, **options)


def test_layers_are_deltanet_but_for_those_of_the_hybrid():
    attentions = [block.attention for block in make(hybrid=[1, 2], window=5).blocks]
    assert [isinstance(layer, CausalMixer) for layer in attentions] == [True, False, False, True]
    assert isinstance(attentions[0].layer, DeltaNet)
    assert isinstance(attentions[1], SoftmaxAttention)
    assert (attentions[1].position, attentions[1].window) == ("rotary", 5)
    assert make(hybrid=[0]).blocks[0].attention.window is None


def test_blocks_have_rms_norms_and_a_swiglu_of_8_thirds_the_width():
    for block in make().blocks:
        assert isinstance(block.attention_norm, nn.RMSNorm)
        assert isinstance(block.mlp, SwiGLU) and block.mlp.down.in_features == round(8 * 64 / 3)


def test_all_weights_start_from_a_normal_of_deviation_0_02_and_norms_at_1():
    model = make()
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert (weight == 1).all(), name
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.25), name
    assert max(w.abs().max().item() for w in model.parameters() if w.ndim > 1) > 0.06
    assert model.readout.weight is not model.embedding.weight


@pytest.mark.parametrize("options", [{}, {"hybrid": [1]}, {"hybrid": [0, 3], "window": 4}])
def test_a_token_has_no_influence_on_earlier_logits(options):
    model, tokens = make(**options), torch.arange(9)[None]
    changed = tokens.clone()
    changed[0, 6] = 10
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert (before[:, 6:] != after[:, 6:]).any(-1).all()


def test_it_can_be_saved_and_loaded_when_no_layer_has_a_window(tmp_path):
    model = make(hybrid=[1])
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    tokens = torch.arange(9)[None]
    assert torch.equal(loaded(tokens), model(tokens))


def test_bad_input_names_the_argument():
    for argument, options in (("hybrid", {"hybrid": [4]}), ("window", {"window": 0})):
        with pytest.raises(ValueError, match=rf"^{argument}: "):
            make(**options)
