import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.attention.softmax_free import SoftmaxFreeAttention
from heterodox.models.soft import (
    PatchEmbedding,
    PostNormBlock,
    SoftVisionTransformer,
    interpolated,
    soft_huge,
    soft_large,
    soft_medium,
    soft_small,
    soft_tiny,
)
from heterodox.training.seeding import seeded

SIZES = (32, 2, (8, 16, 16), (1, 2, 1), (2, 2, 4), (4, 2), 5)


def small(*sizes, **options):
    with seeded(0):
        return SoftVisionTransformer(*(sizes or SIZES), **options).eval()


def test_the_block_normalises_after_each_sum():
    layer = SoftmaxFreeAttention(8, 2, 2)
    block = PostNormBlock(8, layer)
    x = torch.randn(2, 24, 8)
    first = F.layer_norm(x + layer(x, 4, 6), (8,))
    up, _, down = block.mlp
    hidden = up(first)
    gelu = 0.5 * hidden * (1 + torch.tanh(0.7978845608 * (hidden + 0.044715 * hidden**3)))
    expected = F.layer_norm(first + down(gelu), (8,))
    torch.testing.assert_close(block(x, 4, 6), expected, atol=1e-5, rtol=1e-5)
    assert up.out_features == 32


def test_dropout_acts_on_both_branches_in_training_only():
    block = PostNormBlock(8, SoftmaxFreeAttention(8, 2, 2), dropout=0.5)
    x = torch.randn(2, 24, 8)
    assert (block(x, 4, 6) != block(x, 4, 6)).any()
    block.eval()
    assert torch.equal(block(x, 4, 6), block(x, 4, 6))
    with pytest.raises(ValueError, match=r"^dropout: 1\.0 given"):
        PostNormBlock(8, nn.Identity(), dropout=1.0)


def test_patches_of_the_embedding_overlap_and_positions_are_added():
    embedding = PatchEmbedding(3, 6, kernel=7, stride=4, side=4).eval()
    images = torch.randn(1, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(embedding(images)[0, :, 1, 1].sum(), images)
    seen = gradient[0].abs().sum(0).nonzero()
    assert seen.min(0).values.tolist() == [1, 1] and seen.max(0).values.tolist() == [7, 7]
    with torch.no_grad():
        embedding.convolution.weight.zero_(), embedding.convolution.bias.fill_(-1.0)
    assert torch.equal(embedding(images), embedding.positions)


def test_positions_are_interpolated_bilinearly():
    positions = torch.arange(4.0).expand(4, 4)[None, None]
    assert interpolated(positions, 4, 4) is positions
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    torch.testing.assert_close(interpolated(positions, 3, 8), expected.expand(1, 1, 3, 8))


def test_stages_have_the_ratios_local_terms_and_norms_of_the_paper():
    with torch.device("meta"):
        model = soft_tiny()
    layers = [[block.attention for block in stage] for stage in model.stages]
    assert [[layer.ratio for layer in stage] for stage in layers] == [[8], [4, 4], [2, 2, 2]]
    assert [stage[0].local.kernel_size for stage in layers] == [(9, 9), (5, 5), (3, 3)]
    assert all(layer.normalize for stage in layers for layer in stage)
    assert [embedding.positions.shape[-1] for embedding in model.embeddings] == [56, 28, 14, 7]
    assert [e.convolution.kernel_size[0] for e in model.embeddings] == [7, 3, 3, 3]
    with torch.device("meta"):
        plain = soft_tiny(normalize=False)
    assert not plain.stages[0][0].attention.normalize


@pytest.mark.parametrize(
    ("build", "millions"),
    [(soft_tiny, 13), (soft_medium, 45.8), (soft_large, 64.7), (soft_huge, 87), (soft_small, 38.8)],
)
def test_models_have_the_parameters_that_are_reported(build, millions):
    with torch.device("meta"):
        model = build()
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.005)


def test_classes_are_read_from_the_class_token_alone():
    model = small()
    outputs = []
    model.softmax_stage[-1].register_forward_hook(lambda *call: outputs.append(call[2]))
    logits = model(torch.randn(2, 3, 32, 32))
    (tokens,) = outputs
    assert tokens.shape == (2, 1 + 4 * 4, 16)
    torch.testing.assert_close(logits, model.head(model.norm(tokens[:, 0])))


def test_every_pixel_has_a_say():
    model = small()
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images).square().sum(), images)
    assert (gradient.abs().sum(1) > 0).float().mean() > 0.99


def test_other_resolutions_and_oblong_images_work():
    model = small()
    for shape in ((2, 3, 64, 64), (2, 3, 32, 48)):
        assert model(torch.randn(shape)).shape == (2, 5)


def test_the_softmax_stage_may_be_written_among_the_ratios():
    written = small(32, 2, (8, 16, 16), (1, 2, 1), (2, 2, 4), (4, 2, 1), 5)
    assert written.state_dict().keys() == small().state_dict().keys()
    assert written.ratios == (4, 2)


def test_dropout_rises_from_the_first_block_to_the_last():
    model = small(32, 2, (8, 16, 16), (1, 2, 1), (2, 2, 4), (4, 2), 5, dropout=0.4)
    rates = [block.dropout.p for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.0, 0.2, 0.4])


@pytest.mark.parametrize("normalize", [False, True])
def test_a_saved_model_comes_back(normalize, tmp_path):
    model, images = small(normalize=normalize, conv_sizes=(0, 3)), torch.randn(2, 3, 32, 32)
    model.save_pretrained(tmp_path)
    again = SoftVisionTransformer.from_pretrained(tmp_path).eval()
    assert torch.equal(again(images), model(images))
    assert again.stages[0][0].attention.normalize == normalize


@pytest.mark.parametrize(
    ("argument", "sizes", "options"),
    [
        ("image_size", (0, *SIZES[1:]), {}),
        ("image_size", (36, *SIZES[1:]), {}),
        ("patch_size", (32, 0, *SIZES[2:]), {}),
        ("widths", (32, 2, (8,), (1,), (2,), (), 5), {}),
        ("widths", (32, 2, (8, 16, 0), (1, 2, 1), (2, 2, 4), (4, 2), 5), {}),
        ("depths", (32, 2, (8, 16, 16), (1, 2), (2, 2, 4), (4, 2), 5), {}),
        ("depths", (32, 2, (8, 16, 16), (1, 0, 1), (2, 2, 4), (4, 2), 5), {}),
        ("heads", (32, 2, (8, 16, 16), (1, 2, 1), (3, 2, 4), (4, 2), 5), {}),
        ("ratios", (32, 2, (8, 16, 16), (1, 2, 1), (2, 2, 4), (4, 2, 2), 5), {}),
        ("ratios", (32, 2, (8, 16, 16), (1, 2, 1), (2, 2, 4), (0, 2), 5), {}),
        ("num_classes", (*SIZES[:-1], 0), {}),
        ("channels", SIZES, {"channels": 0}),
        ("conv_sizes", SIZES, {"conv_sizes": (9,)}),
        ("conv_size", SIZES, {"conv_sizes": (9, 4)}),
        ("dropout", SIZES, {"dropout": 1.0}),
        ("iterations", SIZES, {"iterations": 0}),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(argument, sizes, options):
    with pytest.raises(ValueError, match=rf"^{argument}: .* expected"):
        SoftVisionTransformer(*sizes, **options)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 32, 36), (3, 32, 32), (2, 3, 0, 32)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"^images: .* expected"):
        small()(torch.zeros(shape))
