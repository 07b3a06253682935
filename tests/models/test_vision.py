import pytest
import torch
from torch import nn

from heterodox.attention.slot import softmax
from heterodox.models.vision import MLP, ConvNet, ViT, patches
from heterodox.training.seeding import seeded


def vit(**options):
    sizes = {"width": 12, "layers": 2, "heads": 3}
    with seeded(0):
        return ViT((2, 8, 6), 2, 5, **{**sizes, **options}).eval()


def test_patches_are_a_strided_unfold():
    images = torch.randn(3, 2, 8, 6)
    expected = nn.functional.unfold(images, 2, stride=2).transpose(1, 2)
    assert torch.equal(patches(images, 2), expected)


def test_the_patch_embedding_is_a_strided_convolution():
    model, images = vit(), torch.randn(3, 2, 8, 6)
    kernel = model.embedding.weight.view(12, 2, 2, 2)
    expected = nn.functional.conv2d(images, kernel, model.embedding.bias, stride=2)
    ours = model.embedding(patches(images, 2))
    assert torch.allclose(ours, expected.flatten(2).transpose(1, 2), atol=1e-6)


def test_every_patch_sees_every_other():
    model = vit()
    images = torch.randn(1, 2, 8, 6)
    seen = []
    model.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model(images)
    images[:, :, -1, -1] += 1  # the last patch
    model(images)
    assert ((seen[0] - seen[1]).abs().amax(dim=-1) > 0).all()


def test_positions_tell_patches_apart():
    model, images = vit(), torch.randn(1, 2, 8, 6)
    swapped = images.clone()
    swapped[..., :2, :2], swapped[..., 2:4, :2] = images[..., 2:4, :2], images[..., :2, :2]
    assert not torch.allclose(model(images), model(swapped), atol=1e-7)
    nn.init.zeros_(model.positions)
    assert torch.allclose(model(images), model(swapped), atol=1e-6)


def test_sigmoid_attention_is_built_for_the_number_of_patches():
    lengths = []

    def factory(embed_dim, num_heads, *, sequence_length, position):
        lengths.append((sequence_length, position))
        return softmax(embed_dim, num_heads, sequence_length=sequence_length, position=position)

    vit(attention=factory)
    assert lengths == [(12, None)] * 2


def test_a_saved_vit_comes_back(tmp_path):
    model, images = vit(attention="sigmoid", layer_scale=0.5), torch.randn(2, 2, 8, 6)
    model.save_pretrained(tmp_path)
    assert torch.equal(ViT.from_pretrained(tmp_path)(images), model(images))
    with pytest.raises(ValueError, match=r"^norm: .* a name expected"):
        vit(norm=nn.LayerNorm).save_pretrained(tmp_path)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 5, 7), (1, 1, 1)])
@pytest.mark.parametrize("build", [ConvNet, MLP])
def test_the_others_take_images_of_any_size(build, shape):
    model = build(shape, 4)
    assert model(torch.randn(3, *shape)).shape == (3, 4)


def test_a_cnn_does_not_care_where_in_the_image_things_are():
    model = ConvNet((1, 40, 40), 3, widths=(4, 4)).eval()
    images = torch.zeros(2, 1, 40, 40)  # large enough for the borders to stay out of sight
    images[0, 0, 12:16, 12:16] = torch.rand(4, 4)
    images[1, 0, 20:24, 16:20] = images[0, 0, 12:16, 12:16]
    first, second = model(images)
    assert torch.allclose(first, second, atol=1e-6)


def test_an_mlp_without_hidden_layers_is_linear():
    model = MLP((1, 3, 3), 2, widths=())
    a, b, zero = torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    assert torch.allclose(model(a + b) + model(zero), model(a) + model(b), atol=1e-6)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: ViT((1, 8, 8), 3, 5, 12, 1, 3), "patch: 3 given, a divisor of the image's 8 x 8"),
        (lambda: ViT((1, 8, 8), 2, 5, 12, 1, 5), "heads: 5 given, a divisor of the width 12"),
        (lambda: ViT((1, 8, 8), 2, 5, 12, 0, 3), "layers: 0 given, a positive number"),
        (lambda: ViT((8, 8), 2, 5, 12, 1, 3), "image_shape: "),
        (lambda: ConvNet((1, 8, 8), 5, widths=()), "widths: "),
        (lambda: MLP((1, 8, 8), 0), "classes: 0 given"),
        (lambda: MLP((1, 8, 8), 2, widths=(4, 0)), "widths: "),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()
