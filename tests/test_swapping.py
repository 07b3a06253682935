import copy
import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import heterodox
from heterodox.attention import ATTENTION_FUNCTIONS
from heterodox.swapping import SwappedMultiheadAttention, swap

METHODS = tuple(ATTENTION_FUNCTIONS)
all_methods = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def multihead(**settings) -> Any:
    layer = nn.MultiheadAttention(8, 2, dtype=torch.float64, **settings)
    if layer.in_proj_bias is not None:
        nn.init.normal_(layer.in_proj_bias)
        nn.init.normal_(layer.out_proj.bias)
    return nn.ModuleDict({"attention": layer})


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def dense(method, query, key, value, allowed):
    """The methods' formulas, one row at a time."""
    output = torch.zeros_like(query)
    allowed = allowed.expand(*query.shape[:3], key.shape[2])
    for where in torch.cartesian_prod(*(torch.arange(n) for n in query.shape[:3])).tolist():
        batch, head, i = where
        seen = allowed[batch, head, i]
        q, k, v = query[batch, head, i], key[batch, head][seen], value[batch, head][seen]
        n = len(k)
        if n == 0:
            continue
        if method == "softmax":
            weights = (k @ q / math.sqrt(len(q))).softmax(0)
        elif method == "sigmoid":
            weights = (k @ q / math.sqrt(len(q)) - math.log(key.shape[2])).sigmoid()
        elif method == "linear":
            weights = (F.elu(k) + 1) @ (F.elu(q) + 1)
            weights = weights / weights.sum()
        else:
            cosine = F.normalize(k, dim=-1) @ F.normalize(q, dim=-1)
            weights = F.softplus(math.log(len(q)) * math.log(n) * cosine)
            weights = weights / weights.sum()
            if method == "softplus":
                weights = torch.relu(n * weights - (1.0 if n > 3 else 0.0)) ** 15
                weights = weights / weights.sum()
        output[batch, head, i] = weights @ v
    return output


def expected_output(layer, method, query, key, value, allowed):
    """`layer`'s own projections around `dense`; everything batch first."""
    if layer.in_proj_weight is None:
        weights = layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight
    else:
        weights = layer.in_proj_weight.chunk(3)
    biases = [0, 0, 0] if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    q, k, v = (
        (x @ weight.T + bias).unflatten(-1, (2, 4)).transpose(1, 2)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    output = dense(method, q, k, v, allowed).transpose(1, 2).flatten(2)
    return output @ layer.out_proj.weight.T + (
        0 if layer.out_proj.bias is None else layer.out_proj.bias
    )


ALL = torch.ones(1, 1, 1, 1, dtype=torch.bool)


# nn.MultiheadAttention


def test_swap_is_the_package_s_swap():
    assert heterodox.swap is swap


@all_methods
@pytest.mark.parametrize(
    "settings", [{}, {"bias": False}, {"kdim": 6, "vdim": 5}, {"kdim": 6, "vdim": 5, "bias": False}]
)
def test_multihead_attention_computes_the_method_between_its_projections(method, settings):
    model = multihead(batch_first=True, **settings)
    swap(model, method)
    query, key, value = (
        inputs(2, 3, 8),
        inputs(2, 5, settings.get("kdim", 8)),
        inputs(2, 5, settings.get("vdim", 8)),
    )
    output, weights = model["attention"](query, key, value)
    truth = expected_output(model["attention"], method, query, key, value, ALL)
    torch.testing.assert_close(output, truth)
    assert weights is None


def test_swapping_to_softmax_changes_nothing():
    model = multihead(batch_first=True)
    x, mask = inputs(2, 5, 8), torch.rand(4, 5, 5) < 0.3
    mask.diagonal(dim1=1, dim2=2).fill_(False)
    padding = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]).bool()
    mask[:, 1, 2] = False  # row 1 of the padded sequence still sees a key
    keywords = {"attn_mask": mask, "key_padding_mask": padding, "need_weights": False}
    before, _ = model["attention"](x, x, x, **keywords)
    swap(model, "softmax")
    torch.testing.assert_close(model["attention"](x, x, x, **keywords)[0], before)


@all_methods
def test_layouts_agree(method):
    first, last = multihead(batch_first=True), multihead(batch_first=False)
    last.load_state_dict(first.state_dict())
    swap(first, method)
    swap(last, method)
    q, k = inputs(2, 3, 8), inputs(2, 5, 8)
    output, _ = first["attention"](q, k, k)
    transposed, _ = last["attention"](q.transpose(0, 1), k.transpose(0, 1), k.transpose(0, 1))
    torch.testing.assert_close(transposed.transpose(0, 1), output)
    for model in (first, last):
        unbatched, _ = model["attention"](q[1], k[1], k[1])
        torch.testing.assert_close(unbatched, output[1])


FORBIDDEN = {
    "one for all": torch.ones(5, 5).triu(1).bool(),
    "one for each head": torch.rand(4, 5, 5, generator=torch.Generator().manual_seed(3)) < 0.5,
}


@all_methods
@pytest.mark.parametrize("which", FORBIDDEN)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("floating", ["neither", "attn_mask", "both"])
def test_masks_forbid_what_torch_s_forbid(method, which, padded, floating):
    def minus_infinity(mask):
        return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask, -torch.inf)

    model = multihead(batch_first=True)
    mask, padding = FORBIDDEN[which].clone(), torch.tensor([[0] * 5, [0, 0, 0, 1, 1]]).bool()
    mask.diagonal(dim1=-2, dim2=-1).fill_(False)
    mask[..., 3:, 0] = False  # every row sees a key that is no padding, as softmax needs
    allowed = ~(mask if mask.dim() == 2 else mask.view(2, 2, 5, 5))
    if padded:
        allowed = allowed & ~padding[:, None, None]
    swap(model, method)
    layer, x = model["attention"], inputs(2, 5, 8)
    truth = expected_output(layer, method, x, x, x, allowed)
    output, _ = layer(
        x,
        x,
        x,
        attn_mask=mask if floating == "neither" else minus_infinity(mask),
        key_padding_mask=(minus_infinity(padding) if floating == "both" else padding)
        if padded
        else None,
    )
    torch.testing.assert_close(output, truth)


@all_methods
def test_an_unbatched_padding_mask_hides_keys(method):
    model = multihead()
    swap(model, method)
    x, padding = inputs(5, 8), torch.tensor([False, True, False, False, True])
    output, _ = model["attention"](x, x, x, key_padding_mask=padding)
    truth = expected_output(model["attention"], method, x[None], x[None], x[None], ~padding)
    torch.testing.assert_close(output, truth[0])


@all_methods
@pytest.mark.parametrize("padded", [False, True])
def test_the_causal_hint_changes_nothing(method, padded):
    model = multihead(batch_first=True)
    swap(model, method)
    x, mask = inputs(2, 5, 8), nn.Transformer.generate_square_subsequent_mask(5)
    keywords = {"attn_mask": mask}
    if padded:
        keywords["key_padding_mask"] = torch.tensor([[0] * 5, [0, 0, 0, 1, 1]]).bool()
    hinted, _ = model["attention"](x, x, x, is_causal=True, **keywords)
    torch.testing.assert_close(hinted, model["attention"](x, x, x, **keywords)[0])
    changed = x.clone()
    changed[:, 3:] += 1
    output, _ = model["attention"](changed, changed, changed, is_causal=True, **keywords)
    torch.testing.assert_close(output[:, :3], hinted[:, :3])


def test_sigmoid_adds_a_float_mask_to_its_logits():
    model = multihead(batch_first=True, bias=False)
    swap(model, "sigmoid", sequence_length=7)
    x, mask = inputs(1, 5, 8), inputs(5, 5)
    layer = model["attention"]
    q, k, v = (
        (x @ w.T).unflatten(-1, (2, 4)).transpose(1, 2) for w in layer.in_proj_weight.chunk(3)
    )
    weights = (q @ k.mT / 2 + mask - math.log(7)).sigmoid()
    truth = (weights @ v).transpose(1, 2).flatten(2) @ layer.out_proj.weight.T
    torch.testing.assert_close(layer(x, x, x, attn_mask=mask)[0], truth)


def test_softplus_refuses_a_float_mask_that_is_more_than_yes_or_no():
    model = multihead(batch_first=True)
    swap(model, "softplus")
    x = inputs(1, 5, 8)
    with pytest.raises(ValueError, match=r"^attn_mask: "):
        model["attention"](x, x, x, attn_mask=inputs(5, 5))


@pytest.mark.parametrize(
    ("keywords", "argument"),
    [
        ({"attn_mask": torch.ones(5, 4).bool()}, "attn_mask"),
        ({"attn_mask": torch.ones(3, 5, 5).bool()}, "attn_mask"),
        ({"attn_mask": torch.ones(5, 5).int()}, "attn_mask"),
        ({"key_padding_mask": torch.ones(2, 4).bool()}, "key_padding_mask"),
        ({"is_causal": True}, "attn_mask"),
    ],
)
def test_bad_masks_are_named(keywords, argument):
    model = multihead(batch_first=True)
    swap(model)
    x = inputs(2, 5, 8)
    with pytest.raises(ValueError, match=rf"^{argument}: "):
        model["attention"](x, x, x, **keywords)


@all_methods
def test_dropout_acts_only_in_training(method):
    model = multihead(batch_first=True, dropout=0.5)
    swap(model, method)
    layer, x = model["attention"], inputs(1, 5, 8)
    assert not torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])
    layer.eval()
    assert torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])
    assert not swap(multihead(), method).skipped


def test_parameters_are_the_same_tensors_and_checkpoints_load():
    model = multihead(kdim=6)
    before = dict(model.named_parameters())
    checkpoint = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    swap(model)
    after = dict(model.named_parameters())
    assert list(before) == list(after)
    assert all(after[name] is before[name] for name in before)
    q, k, v = inputs(3, 1, 8), inputs(5, 1, 6), inputs(5, 1, 8)
    model["attention"](q, k, v)[0].square().sum().backward()
    optimizer.step()
    moved = {name: (checkpoint[name] != value).any() for name, value in model.state_dict().items()}
    assert all(moved.values())
    assert model.load_state_dict(checkpoint)
    multihead(kdim=6).load_state_dict(model.state_dict())


def test_hooks_and_their_handles_go_with_the_layer():
    model = multihead()
    seen = []
    handle = model["attention"].register_forward_hook(lambda layer, *_: seen.append(layer))
    swap(model)
    x = inputs(3, 1, 8)
    model["attention"](x, x, x)
    handle.remove()
    model["attention"](x, x, x)
    assert seen == [model["attention"]]


@all_methods
def test_a_swapped_model_can_be_copied_and_saved(method):
    model = multihead()
    swap(model, method)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    x = inputs(3, 1, 8)
    for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(again["attention"](x, x, x)[0], model["attention"](x, x, x)[0])


@pytest.mark.parametrize("argument", ["add_bias_kv", "add_zero_attn"])
def test_extra_keys_are_refused_and_nothing_has_changed(argument):
    model: Any = nn.ModuleList([multihead(), multihead(**{argument: True})])
    with pytest.raises(ValueError, match=rf"^{argument}: "):
        swap(model)
    assert type(model[0]["attention"]) is nn.MultiheadAttention


def test_a_subclass_is_skipped():
    class Own(nn.MultiheadAttention):
        pass

    report = swap(nn.ModuleList([multihead(), Own(8, 2)]))
    assert [(name, "subclass" in reason) for name, _, reason in report.skipped] == [("1", True)]


# PyTorch's transformer layers


def encoder_layer(**settings) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64, **settings
    )


def by_hand(layer, method, x, allowed):
    def attention(y):
        return expected_output(layer.self_attn, method, y, y, y, allowed)

    def feed_forward(y):
        return layer.linear2(layer.linear1(y).relu())

    if layer.norm_first:
        x = x + attention(layer.norm1(x))
        return x + feed_forward(layer.norm2(x))
    x = layer.norm1(x + attention(x))
    return layer.norm2(x + feed_forward(x))


@all_methods
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("masks", ["none", "causal", "padding", "both"])
def test_encoders_compute_the_same_in_training_and_in_eval_mode(method, norm_first, masks):
    model = nn.TransformerEncoder(
        encoder_layer(norm_first=norm_first), 2, enable_nested_tensor=not norm_first
    )
    swap(model, method)
    x, allowed, keywords = inputs(2, 5, 8), ALL, {}
    if masks in ("causal", "both"):
        keywords["mask"] = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
        allowed = allowed & torch.ones(5, 5).tril().bool()
    if masks in ("padding", "both"):
        padding = torch.tensor([[0] * 5, [0, 0, 0, 1, 1]]).bool()
        keywords["src_key_padding_mask"] = (
            padding
            if masks == "padding"
            else torch.zeros(2, 5, dtype=torch.float64).masked_fill(padding, -torch.inf)
        )
        allowed = allowed & ~padding[:, None, None]
    truth = by_hand(model.layers[1], method, by_hand(model.layers[0], method, x, allowed), allowed)
    torch.testing.assert_close(model(x, **keywords), truth)
    model.eval()
    with torch.no_grad():  # where PyTorch takes its fused path
        torch.testing.assert_close(model(x, **keywords), truth)


def test_the_fused_path_would_have_been_taken():
    """So that the test above tests something: unswapped, eval mode makes nested tensors."""
    model = nn.TransformerEncoder(encoder_layer(), 1).eval()
    padding = torch.tensor([[0] * 5, [0, 0, 0, 1, 1]]).bool()
    with torch.no_grad():
        assert (model(inputs(2, 5, 8), src_key_padding_mask=padding)[1, 3:] == 0).all()
    report = swap(model)
    assert not model.use_nested_tensor
    assert "use_nested_tensor" in str(report)


def test_a_layer_swapped_behind_the_encoder_s_back_refuses_nested_tensors():
    model = nn.TransformerEncoder(encoder_layer(), 1).eval()
    swap(model.layers[0])
    padding = torch.tensor([[0] * 5, [0, 0, 0, 1, 1]]).bool()
    with torch.no_grad(), pytest.raises(ValueError, match=r"^query: a nested tensor"):
        model(inputs(2, 5, 8), src_key_padding_mask=padding)


@all_methods
def test_decoders_swap_both_attentions(method):
    model = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True, dtype=torch.float64), 1
    )
    assert [name for name, *_ in swap(model, method).replaced] == [
        "layers.0.self_attn",
        "layers.0.multihead_attn",
    ]
    layer, x, memory = model.layers[0], inputs(2, 4, 8), inputs(2, 6, 8)
    causal = torch.ones(4, 4).tril().bool()
    y = layer.norm1(x + expected_output(layer.self_attn, method, x, x, x, causal))
    y = layer.norm2(y + expected_output(layer.multihead_attn, method, y, memory, memory, ALL))
    truth = layer.norm3(y + layer.linear2(layer.linear1(y).relu()))
    for mode in (True, False):
        model.train(mode)
        torch.testing.assert_close(model(x, memory, tgt_mask=~causal, tgt_is_causal=True), truth)


# swap itself


def test_swapping_again_replaces_the_replacement():
    model, x = multihead(batch_first=True), inputs(1, 5, 8)
    before, _ = model["attention"](x, x, x)
    swap(model, "sigmoid", sequence_length=9)
    report = swap(model, "softmax")
    assert report.replaced == [
        ("attention", "sigmoid attention (bias=-2.197)", "softmax attention")
    ]
    torch.testing.assert_close(model["attention"](x, x, x)[0], before)


def test_a_shared_layer_stays_shared():
    layer = nn.MultiheadAttention(8, 2)
    inner = nn.ModuleList([layer])
    model: Any = nn.ModuleDict({"a": layer, "b": layer, "c": inner, "d": inner})
    report = swap(model)
    assert model["a"] is model["b"] is model["c"][0] is model["d"][0]
    assert type(model["a"]) is SwappedMultiheadAttention
    assert [name for name, *_ in report.replaced] == ["a", "b", "c.0", "d.0"]


def test_a_bare_layer_must_be_wrapped():
    layer = nn.MultiheadAttention(8, 2)
    with pytest.raises(ValueError, match=r"^model: .*ModuleDict"):
        swap(layer)
    model = nn.ModuleDict({"attention": layer})
    swap(model)
    with pytest.raises(ValueError, match=r"^model: .*ModuleDict"):
        swap(model["attention"])


def test_sequence_length_fixes_the_bias_and_without_it_the_report_says_so():
    x = inputs(1, 5, 8)
    fixed, free = multihead(batch_first=True), multihead(batch_first=True)
    free.load_state_dict(fixed.state_dict())
    assert not swap(fixed, "sigmoid", sequence_length=5).notes
    assert "number of keys" in str(swap(free, "sigmoid"))
    assert not swap(multihead(), "sigmoid", bias=-2.0).notes
    torch.testing.assert_close(fixed["attention"](x, x, x), free["attention"](x, x, x))
    short = x[:, :2]
    difference = (
        fixed["attention"](short, short, short)[0] - free["attention"](short, short, short)[0]
    )
    assert difference.abs().max() > 1e-3


def test_options_reach_the_function():
    x = inputs(1, 9, 8)
    default, flat = multihead(batch_first=True), multihead(batch_first=True)
    flat.load_state_dict(default.state_dict())
    swap(default, "softplus-lssa")
    swap(flat, "softplus", power=1.0, offset=0.0)  # which is LSSA again
    torch.testing.assert_close(default["attention"](x, x, x), flat["attention"](x, x, x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "sigmoyd"}, r"^attention: 'sigmoyd' given.*did you mean 'sigmoid'"),
        ({"attention": "sigmoid", "powr": 3}, r"^powr: "),
        ({"attention": "softmax", "bias": 3.0}, r"^bias: "),
        ({"attention": "sigmoid", "enable_gqa": True}, r"^enable_gqa: "),
        ({"attention": "softplus", "power": 0.5}, r"^power: "),
        ({"attention": "softplus", "sequence_length": 5}, r"^sequence_length: "),
        ({"attention": "sigmoid", "sequence_length": 0}, r"^sequence_length: "),
        ({"attention": "sigmoid", "sequence_length": 5, "bias": 1.0}, r"^sequence_length: "),
    ],
)
def test_bad_arguments_are_named_and_nothing_has_changed(arguments, message):
    model = multihead()
    with pytest.raises(ValueError, match=message):
        swap(model, **arguments)
    assert type(model["attention"]) is nn.MultiheadAttention


def test_nothing_to_replace_is_an_error():
    with pytest.raises(ValueError, match=r"^model: a Sequential without a layer to replace"):
        swap(nn.Sequential(nn.Linear(2, 2)))


def test_hugging_face_models_are_sent_to_register():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match=r"heterodox\.integrations\.transformers\.register"):
        swap(transformers.GPT2Model(config))


def test_a_compiled_layer_does_not_keep_its_old_forward():
    model = multihead(batch_first=True)
    model["attention"].compile(backend="eager")
    swap(model, "sigmoid", bias=-100.0)  # all weights are zero
    x = inputs(1, 5, 8)
    output, _ = model["attention"](x, x, x)
    torch.testing.assert_close(output, model["attention"].out_proj.bias.expand(1, 5, 8))


def test_a_swapped_layer_shows_its_method():
    model = multihead()
    swap(model, "softplus", power=3.0)
    assert isinstance(model["attention"], SwappedMultiheadAttention)
    assert "softplus attention (power=3)" in repr(model)
