"""DeltaNet against its equations, its peer's checkpoints and decoding; and in a slot's place."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.attention import ATTENTION
from heterodox.attention.causal import CausalMixer
from heterodox.attention.delta import DeltaNet, DeltaNetState
from heterodox.layers.short_convolution import ShortConvolution

WIDTH, HEADS = 8, 2

OPTIONS = {
    "default": {},
    "original": {"qk_activation": "elu", "qk_norm": "sum"},
    "relu": {"qk_activation": "relu"},
    "identity, no convolution": {"qk_activation": "identity", "use_short_conv": False},
    "no convolution": {"use_short_conv": False},
    "everything": {
        "expand_k": 0.5,
        "expand_v": 2.0,
        "conv_size": 3,
        "use_gate": True,
        "allow_neg_eigval": True,
        "chunk_size": 2,
    },
    "no beta, kernel 1": {"use_beta": False, "conv_size": 1},
}


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def make(**options):
    layer = DeltaNet(WIDTH, HEADS, **options).double()
    for i, parameter in enumerate(layer.parameters()):
        parameter.data = draw(*parameter.shape, seed=10 + i) * 0.5
    return layer


def checkpoint(conv_size=4, key_dim=WIDTH, value_dim=WIDTH, gate=False):
    """The state dict of a layer of the authors' code."""
    shapes = {
        "q_proj.weight": (key_dim, WIDTH),
        "k_proj.weight": (key_dim, WIDTH),
        "v_proj.weight": (value_dim, WIDTH),
        "b_proj.weight": (HEADS, WIDTH),
        "q_conv1d.weight": (key_dim, 1, conv_size),
        "k_conv1d.weight": (key_dim, 1, conv_size),
        "v_conv1d.weight": (value_dim, 1, conv_size),
        "o_norm.weight": (value_dim // HEADS,),
        "o_proj.weight": (WIDTH, value_dim),
    }
    if gate:
        shapes["g_proj.weight"] = (value_dim, WIDTH)
    return {name: draw(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def silu(x):
    return x / (1 + math.exp(-x))


def by_hand(weights, x, activation=silu, gate=False):
    """One sequence through the layer, a number at a time."""

    def times(name, row):
        return [sum(a * b for a, b in zip(w, row, strict=True)) for w in weights[name].tolist()]

    def convolved(name):
        rows, filters = [times(f"{name}_proj.weight", row) for row in x], weights
        filters = filters[f"{name}_conv1d.weight"][:, 0].tolist()
        size = len(filters[0])
        return [
            [
                silu(sum(f[size - 1 - i] * rows[t - i][c] for i in range(size) if t >= i))
                for c, f in enumerate(filters)
            ]
            for t in range(len(rows))
        ]

    def normalised(row):
        return [value / math.sqrt(sum(v * v for v in row) + 1e-6) for value in row]

    queries, keys, values = convolved("q"), convolved("k"), convolved("v")
    key_dim, value_dim = len(keys[0]) // HEADS, len(values[0]) // HEADS
    states = [torch.zeros(key_dim, value_dim, dtype=torch.float64) for _ in range(HEADS)]
    outputs = []
    for t, row in enumerate(x):
        beta = [1 / (1 + math.exp(-b)) for b in times("b_proj.weight", row)]
        gates = [silu(g) for g in times("g_proj.weight", row)] if gate else None
        joined = []
        for h in range(HEADS):
            of_key = slice(h * key_dim, (h + 1) * key_dim)
            of_value = slice(h * value_dim, (h + 1) * value_dim)
            q = torch.tensor(normalised(queries[t][of_key]), dtype=torch.float64)
            k = torch.tensor(normalised(keys[t][of_key]), dtype=torch.float64)
            v = torch.tensor(values[t][of_value], dtype=torch.float64)
            states[h] = states[h] + beta[h] * torch.outer(k, v - states[h].T @ k)
            o = (states[h].T @ q / math.sqrt(key_dim)).tolist()
            root = math.sqrt(sum(number**2 for number in o) / len(o) + 1e-5)
            o = [a / root * w for a, w in zip(o, weights["o_norm.weight"].tolist(), strict=True)]
            joined += o
        if gates is not None:
            joined = [a * g for a, g in zip(joined, gates, strict=True)]
        outputs.append(times("o_proj.weight", joined))
    return torch.tensor(outputs, dtype=torch.float64)


@pytest.mark.parametrize("gate", [False, True])
def test_a_checkpoint_with_the_peer_s_names_gives_the_output_of_the_equations(gate):
    sizes = {"key_dim": 4, "value_dim": 16} if gate else {}
    weights = checkpoint(gate=gate, **sizes)
    options = {"expand_k": 0.5, "expand_v": 2.0, "use_gate": True} if gate else {}
    layer = DeltaNet(WIDTH, HEADS, **options).double()
    layer.load_state_dict(weights, strict=True)
    x = draw(1, 7, WIDTH, seed=99)
    expected = by_hand(weights, x[0].tolist(), gate=gate)
    torch.testing.assert_close(layer(x)[0], expected)


def test_names_of_parameters_follow_the_options():
    plain = set(DeltaNet(WIDTH, HEADS).state_dict())
    assert plain == set(checkpoint())
    bare = DeltaNet(WIDTH, HEADS, use_short_conv=False, use_beta=False)
    assert set(bare.state_dict()) == {
        *(f"{name}_proj.weight" for name in "qkvo"),
        "o_norm.weight",
    }


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cut", [1, 5])
def test_a_carried_state_equals_one_long_call(options, cut):
    layer, x = make(**options), draw(2, 9, WIDTH)
    whole, end = layer(x, return_state=True)
    first, middle = layer(x[:, :cut], return_state=True)
    second, last = layer(x[:, cut:], middle, return_state=True)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole)
    torch.testing.assert_close(last.recurrent, end.recurrent)
    assert len(last.convolutions) == len(end.convolutions) == (3 if layer.q_conv1d else 0)
    for result, expected in zip(last.convolutions, end.convolutions, strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_decoding_token_by_token_equals_one_call(options):
    layer, x = make(**options), draw(2, 6, WIDTH)
    state, outputs = None, []
    for row in x.split(1, dim=1):
        output, state = layer(row, state, return_state=True)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=1), layer(x))


def test_the_state_holds_the_matrix_and_the_last_inputs_of_each_convolution():
    layer, x = make(expand_k=0.5, expand_v=2.0), draw(2, 5, WIDTH)
    _, state = layer(x, return_state=True)
    assert state.recurrent.shape == (2, HEADS, 2, 8)
    for inputs, name in zip(state.convolutions, "qkv", strict=True):
        torch.testing.assert_close(inputs, getattr(layer, f"{name}_proj")(x)[:, -3:])


def test_a_bfloat16_layer_keeps_a_float32_state():
    layer = make().bfloat16()
    output, state = layer(draw(2, 5, WIDTH).bfloat16(), return_state=True)
    assert output.dtype == torch.bfloat16 and state.recurrent.dtype == torch.float32
    again, _ = layer(draw(2, 1, WIDTH).bfloat16(), state, return_state=True)
    assert again.dtype == torch.bfloat16


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_output_at_a_position_has_no_gradient_to_later_inputs(options):
    layer, x = make(**options), draw(1, 9, WIDTH).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[:, 4].sum(), x)
    assert (gradient[:, 5:] == 0).all()
    assert (gradient[:, 4] != 0).any()


def test_the_length_of_queries_and_keys_does_not_matter_after_the_l2_norm():
    layer, x = make(qk_activation="identity", use_short_conv=False), draw(1, 6, WIDTH)
    before = layer(x)
    layer.q_proj.weight.data.mul_(30.0)
    layer.k_proj.weight.data.mul_(40.0)
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-5)


def test_a_doubled_beta_gives_negative_eigenvalues():
    layer = make(use_beta=False, allow_neg_eigval=True, qk_activation="identity", conv_size=1)
    for convolution in (layer.q_conv1d, layer.k_conv1d):
        convolution.weight.data.fill_(1.0)
    x = draw(1, 1, WIDTH)
    state = DeltaNetState(draw(1, HEADS, 4, 4), tuple(draw(1, 0, WIDTH) for _ in range(3)))
    _, after = layer(x, state, return_state=True)
    key = F.normalize(layer.k_proj(x).view(HEADS, 4), dim=-1)
    value = F.silu(layer.v_conv1d.weight.view(-1) * layer.v_proj(x)[0, 0]).view(HEADS, 4)
    before = torch.einsum("hkv,hk->hv", state.recurrent[0], key)
    reflected = torch.einsum("hkv,hk->hv", after.recurrent[0], key)
    torch.testing.assert_close(reflected, 2 * value - before, rtol=1e-4, atol=1e-5)


def test_a_short_convolution_is_a_causal_depthwise_convolution():
    layer, x = ShortConvolution(6, 4, activation="silu").double(), draw(2, 9, 6)
    reference = nn.Conv1d(6, 6, 4, groups=6, padding=3, bias=False).double()
    reference.load_state_dict(layer.state_dict())
    expected = F.silu(reference(x.mT)[..., :9].mT)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(ShortConvolution(6)(x.float()).shape, x.shape)


@pytest.mark.parametrize("kernel", [1, 2, 4])
def test_a_short_convolution_goes_on_from_its_state(kernel):
    layer, x, state, outputs = ShortConvolution(6, kernel).double(), draw(2, 9, 6), None, []
    for part in (x[:, :2], x[:, 2:3], x[:, 3:]):
        output, state = layer(part, state, return_state=True)
        outputs.append(output)
        assert state.shape == (2, kernel - 1, 6)
    torch.testing.assert_close(torch.cat(outputs, dim=1), layer(x))


@pytest.mark.parametrize("name", ["delta", "deltanet"])
@pytest.mark.parametrize("position", ["rotary", None])
def test_the_slot_s_layers_are_causal_only(name, position):
    layer = ATTENTION[name](WIDTH, HEADS, sequence_length=5, position=position)
    x = draw(2, 5, WIDTH).float()
    torch.testing.assert_close(layer(x, is_causal=True), layer.layer(x))
    with pytest.raises(ValueError, match=r"^is_causal: "):
        layer(x)
    with pytest.raises(ValueError, match=r"^attn_mask: "):
        layer(x, torch.ones(2, 1, 1, 5, dtype=torch.bool), is_causal=True)


@pytest.mark.parametrize("name", ["delta", "deltanet"])
def test_the_slot_s_layers_refuse_alibi(name):
    with pytest.raises(ValueError, match=r"^position: 'alibi' given"):
        ATTENTION[name](WIDTH, HEADS, sequence_length=5, position="alibi")


def test_delta_has_neither_convolutions_nor_a_feature_map():
    plain = ATTENTION["delta"](WIDTH, HEADS, sequence_length=5, position=None)
    assert isinstance(plain, CausalMixer)
    assert plain.layer.q_conv1d is None and plain.layer.qk_activation == "identity"


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("num_heads", lambda: DeltaNet(8, 3)),
        ("num_heads", lambda: DeltaNet(8, 0)),
        ("num_heads", lambda: DeltaNet(8, 4, expand_v=0.25)),
        ("hidden_size", lambda: DeltaNet(0, 1)),
        ("expand_k", lambda: DeltaNet(8, 2, expand_k=0.3)),
        ("qk_activation", lambda: DeltaNet(8, 2, qk_activation="tanh")),
        ("qk_norm", lambda: DeltaNet(8, 2, qk_norm="l1")),
        ("conv_size", lambda: DeltaNet(8, 2, conv_size=0)),
        ("chunk_size", lambda: DeltaNet(8, 2, chunk_size=0)),
        ("x", lambda: DeltaNet(8, 2)(torch.zeros(2, 5, 7))),
        ("state", lambda: DeltaNet(8, 2)(torch.zeros(1, 2, 8), state_of((1, 2, 4, 3)))),
        ("state", lambda: DeltaNet(8, 2)(torch.zeros(1, 2, 8), state_of((1, 2, 4, 4), past=2))),
        ("state", lambda: DeltaNet(8, 2)(torch.zeros(1, 2, 8), state_of((1, 2, 4, 4), parts=0))),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument}: "):
        call()


def state_of(shape, past=3, parts=3):
    return DeltaNetState(torch.zeros(shape), tuple(torch.zeros(1, past, 8) for _ in range(parts)))
