"""Contestants compute what they say, so that equal work is compared."""

import math

import pytest
import torch
import torch.nn.functional as F

from heterodox.attention import sigmoid_attention
from heterodox.bench import BENCHES, COMPONENTS, PACKAGES, PEERS, SIZES
from heterodox.bench import adaptation as adaptation_bench
from heterodox.bench import attention as attention_bench
from heterodox.bench import attention_vision as vision_bench
from heterodox.bench import continual as continual_bench
from heterodox.bench import delays as delays_bench
from heterodox.bench import forward_graph as graph_bench
from heterodox.bench import head as head_bench
from heterodox.bench import lora_gradient as lora_bench
from heterodox.bench import loss as loss_bench
from heterodox.bench import optimizer as optimizer_bench
from heterodox.bench import output_layer as output_bench
from heterodox.bench.contestants import chosen_peers, contestant
from heterodox.bench.memory import peak_above_inputs
from heterodox.bench.workload import Case
from heterodox.continual.spiking_mlp import SpikingMLP
from heterodox.losses import FactoredSphericalLinear, stablemax_cross_entropy
from heterodox.losses.z_loss import z_loss
from heterodox.optim import project_orthogonal

TINY = {
    "adaptation": "3",
    "attention": "64",
    "attention-svm": "2x3x4",
    "attention-vision": "49",
    "boosting": "3",
    "continual": "4x12x8",
    "delays": "6x2x5x4x3",
    "generation": "2x4",
    "graph": "karate-club-2",
    "head": "8x6x10x4",
    "hebbian-update": "2x1x5x3",
    "hopfield": "20x3x2",
    "label-noise": "4x3",
    "lora-gradient": "32",
    "loss": "8x5",
    "mean-field": "8",
    "optimizer": "3x4",
    "output-layer": "60x4",
    "physical": "8x5x3",
    "prox-softmax": "3x4x2x2",
    "regression-loss": "8",
    "soft-labels": "6x8",
    "spiking": "4x2x3",
    "text-similarity": "3x6",
}

NEEDS_X_TRANSFORMERS = "needs x-transformers"


def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, 10, 8, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("slot", list(BENCHES))
def test_every_contestant_of_every_slot_does_every_case(slot):
    workload = BENCHES[slot]()
    names = [*COMPONENTS[slot], *chosen_peers(slot, None)]
    for case in workload.cases([TINY[slot]]):
        for name in names:
            if "compiled" in name:
                continue
            try:
                workload.prepare(contestant(slot, name), case, "cpu")()
            except ValueError as refusal:
                assert str(refusal).startswith(("is_causal: ", "query: on cpu given, a GPU"))


@pytest.mark.parametrize("slot", list(BENCHES))
def test_tables_agree_with_the_workloads(slot):
    workload = BENCHES[slot]()
    assert list(BENCHES) == list(COMPONENTS) == list(PEERS) == list(SIZES)
    cases = workload.cases(SIZES[slot])
    assert {case.size for case in cases} == set(SIZES[slot])
    passes = {case.passes for case in cases}
    for target in workload.targets:
        assert target.contestant in COMPONENTS[slot]
        assert target.passes in passes
        assert workload.cases([target.size])


@pytest.mark.parametrize("is_causal", [False, True])
def test_softmax_peers_equal_the_default(is_causal):
    query, key, value = qkv()
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    dense = attention_bench.dense_softmax(query, key, value, is_causal=is_causal)
    torch.testing.assert_close(dense, expected)
    pytest.importorskip("x_transformers", reason=NEEDS_X_TRANSFORMERS)
    theirs = attention_bench.x_transformers_softmax(query, key, value, is_causal=is_causal)
    torch.testing.assert_close(theirs, expected)


@pytest.mark.parametrize("size", ["64", "128"])
def test_peers_of_flash_linear_attention_compute_the_same(size):
    pytest.importorskip("fla", reason="needs fla-core")
    for ours, *theirs in (("delta", "fla-delta", "fla-delta-recurrent"), ("linear", "fla-linear")):
        for passes in ("forward", "forward and backward"):
            case = Case(size, passes, "causal")
            expected = attention_bench.prepare(contestant("attention", ours), case, "cpu")()
            for name in theirs:
                result = attention_bench.prepare(contestant("attention", name), case, "cpu")()
                torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_sigmoid_peer_equals_sigmoid_attention(is_causal):
    pytest.importorskip("x_transformers", reason=NEEDS_X_TRANSFORMERS)
    query, key, value = qkv()
    expected = sigmoid_attention(query, key, value, is_causal=is_causal, bias=-math.log(10))
    theirs = attention_bench.x_transformers_sigmoid(query, key, value, is_causal=is_causal)
    torch.testing.assert_close(theirs, expected)


@pytest.mark.parametrize("variant", ["causal", "full"])
def test_attention_calls_return_output_and_gradients(variant):
    query, key, value = [], [], []

    def spy(*inputs, is_causal):
        for seen, given in zip((query, key, value), inputs, strict=True):
            seen.append(given)
        assert is_causal == (variant == "causal")
        return F.scaled_dot_product_attention(*inputs, is_causal=is_causal)

    forward = attention_bench.prepare(spy, Case("16", "forward", variant), "cpu")()
    gradients = attention_bench.prepare(spy, Case("16", "forward and backward", variant), "cpu")()
    assert forward.shape == (1, 8, 16, 64) and not forward.requires_grad
    assert [g.shape for g in gradients] == 3 * [(1, 8, 16, 64)]
    assert torch.equal(query[0], query[1])  # the same inputs, whoever is measured
    assert not torch.equal(query[0], key[0])


def test_vision_layers_with_the_same_weights_agree():
    x = torch.randn(2, 196, vision_bench.WIDTH)
    default, dense = vision_bench.softmax(14), vision_bench.dense(14)
    dense.load_state_dict(default.state_dict())
    torch.testing.assert_close(dense(x), default(x))
    newton, cholesky = vision_bench.soft(14), vision_bench.soft_cholesky(14)
    cholesky.load_state_dict(newton.state_dict())
    torch.testing.assert_close(cholesky(x), newton(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("side", [14, 56])
def test_vision_layers_compress_every_grid_to_49_tokens(side):
    seen = []
    layer = vision_bench.soft_plus_plus(side)
    assert layer.layer.normalize and not vision_bench.soft(side).layer.normalize
    layer.layer.bottleneck_norm.register_forward_hook(lambda *call: seen.append(call[2].shape))
    layer(torch.randn(1, side**2, vision_bench.WIDTH))
    assert seen == [(vision_bench.HEADS, 49, vision_bench.HEAD_DIM)]


def test_vision_calls_return_output_and_the_gradients_of_tokens_and_weights():
    build = vision_bench.soft
    forward = vision_bench.prepare(build, Case("196", "forward"), "cpu")()
    gradients = vision_bench.prepare(build, Case("196", "forward and backward"), "cpu")()
    assert forward.shape == (1, 196, 64) and not forward.requires_grad
    assert [g.shape for g in gradients[1:]] == [p.shape for p in build(14).parameters()]
    assert gradients[0].shape == forward.shape


def test_gradients_of_an_adapter_are_the_same_by_every_method():
    case = Case("64", "gradient")
    calls = {
        name: lora_bench.prepare(contestant("lora-gradient", name), case, "cpu")
        for name in ("exact", "polynomial", "sdpa-autograd")
    }
    exact = calls["exact"]()
    for name, tolerance in (("sdpa-autograd", 1e-5), ("polynomial", 1e-2)):
        for found, truth in zip(calls[name](), exact, strict=True):
            assert (found - truth).abs().max() <= tolerance * truth.abs().max()


@pytest.mark.parametrize(("bins", "frequencies"), [(20, 7), (90, 70)])
def test_fourier_heads_with_the_same_weights_agree(bins, frequencies):
    x = torch.randn(5, 6, dtype=torch.float64)
    ours = head_bench.fourier(6, bins, frequencies).double()
    every_wave = head_bench.EveryWave(6, bins, frequencies).double()
    every_wave.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), every_wave(x), rtol=1e-6, atol=1e-6)


def test_svm_solvers_agree():
    pytest.importorskip("cvxpy", reason="needs cvxpy")
    for norm in ("frobenius", "nuclear"):
        results = {
            name: BENCHES["attention-svm"]().prepare(
                contestant("attention-svm", name), Case("3x4x5", "solve", norm), "cpu"
            )()
            for name in ("heterodox", "cvxpy-clarabel", "cvxpy-scs")
        }
        for result in results.values():
            torch.testing.assert_close(result, results["heterodox"], rtol=0, atol=5e-2)


def test_loss_variants_compute_the_same_loss():
    case = Case("64x10", "forward", "")
    double = loss_bench.prepare(stablemax_cross_entropy, case, "cpu")()
    single = loss_bench.prepare(loss_bench.stablemax_float32, case, "cpu")()
    assert double.item() == pytest.approx(single.item(), rel=1e-5)
    assert double.item() != single.item()


def test_losses_of_the_bottleneck_compute_the_same_gradients():
    case = Case("40", "forward and backward")
    names = ("one-matrix-for-each-use", "shared", "shared-16-blocks")
    expected, *others = (
        BENCHES["regression-loss"]().prepare(contestant("regression-loss", name), case, "cpu")()
        for name in names
    )
    for gradients in others:
        for found, truth in zip(gradients, expected, strict=True):
            torch.testing.assert_close(found, truth, rtol=1e-3, atol=1e-6)


def test_losses_for_noisy_labels_take_the_same_steps():
    case, values = Case("8x3", "step"), {}
    for name in ("elr", "elr-list-of-indices", "elr-float16"):
        torch.manual_seed(0)
        step = BENCHES["label-noise"]().prepare(contestant("label-noise", name), case, "cpu")
        values[name] = torch.stack([step() for _ in range(3)])
    torch.testing.assert_close(values["elr-list-of-indices"], values["elr"])
    torch.testing.assert_close(values["elr-float16"], values["elr"], rtol=1e-2, atol=1e-2)


def test_losses_of_soft_labels_are_the_same():
    case = Case("12x40", "forward and backward")
    gradients = [
        BENCHES["soft-labels"]().prepare(contestant("soft-labels", name), case, "cpu")()[0]
        for name in ("dense", "dense-weighted", "compressed", "sum-of-products")
    ]
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0])


def test_the_loop_projects_every_gradient_as_perp_grad_does():
    expected, parameters = [], []

    def make(params, lr):
        expected.extend(project_orthogonal(p.detach(), p.grad) for p in params)
        parameters.extend(params)
        return optimizer_bench.PerpGradLoop(params, lr)

    step = optimizer_bench.prepare(make, Case("mlp", "step"), "cpu")
    start = [parameter.detach().clone() for parameter in parameters]
    step()
    for parameter, old, gradient in zip(parameters, start, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)
        change = (parameter - old).abs()  # the first step of Adam: the learning rate everywhere
        assert change.median().item() == pytest.approx(optimizer_bench.LEARNING_RATE, rel=0.01)


def test_the_models_of_the_optimizer_are_what_they_are_called():
    assert optimizer_bench.shapes("mlp") == [
        (200, 226),
        (200,),
        (200, 200),
        (200,),
        (113, 200),
        (113,),
    ]
    transformer = optimizer_bench.shapes("transformer")
    assert len(transformer) == 150
    assert optimizer_bench.shapes("20x1000000") == 20 * [(1000000,)]


def test_the_nested_loops_find_the_same_point_as_one_iteration():
    for passes in ("forward", "forward and backward"):
        case = Case("3x20x2x2", passes)
        results = [
            BENCHES["prox-softmax"]().prepare(contestant("prox-softmax", name), case, "cpu")()
            for name in ("nested", "prox-softmax")
        ]
        torch.testing.assert_close(*results, rtol=0, atol=1e-4)


def test_hopfield_networks_of_every_kind_follow_the_same_fields(monkeypatch):
    monkeypatch.setattr("heterodox.bench.hopfield.BETA", 1e6)  # no chance is left
    case = Case("40x3x2", "10 steps")  # so that no field is zero
    expected = BENCHES["hopfield"]().prepare(contestant("hopfield", "dense"), case, "cpu")()
    for name in ("factors", *chosen_peers("hopfield", None)):
        found = BENCHES["hopfield"]().prepare(contestant("hopfield", name), case, "cpu")()
        for row, truth in zip(found, expected, strict=True):
            assert row.tolist() == truth.tolist()


def test_solvers_of_the_mean_field_agree():
    for passes in ("forward", "forward and backward"):
        results = {
            name: BENCHES["mean-field"]().prepare(
                contestant("mean-field", name), Case("8", passes), "cpu"
            )()
            for name in ("unrolled", "implicit", *chosen_peers("mean-field", None))
        }
        exact = results.pop("unrolled")
        for found in results.values():
            for a, b in zip(found, exact, strict=True):
                assert (a - b).abs().max() <= 0.1 * b.abs().max()


@pytest.mark.parametrize(
    ("slot", "size"),
    [
        ("hopfield", "20x3"),
        ("mean-field", "0"),
        ("prox-softmax", "3x4"),
        ("attention", "0"),
        ("attention", "1e3"),
        ("attention", "-5"),
        ("attention-vision", "0"),
        ("attention-vision", "196x"),
        ("attention-vision", "50"),
        ("attention-vision", "64"),
        ("head", "512x32x50"),
        ("head", "512x32x1x12"),
        ("label-noise", "128"),
        ("soft-labels", "1024x0"),
        ("generation", "32"),
        ("text-similarity", "0x96"),
        ("lora-gradient", "0"),
        ("attention-svm", "6x8"),
        ("loss", "10"),
        ("loss", "4x"),
        ("loss", "0x10"),
        ("optimizer", "resnet"),
        ("physical", "206x20"),
        ("physical", "206x20x1"),
        ("regression-loss", "1"),
        ("regression-loss", "4x4"),
        ("optimizer", "0x10"),
        ("output-layer", "2000"),
    ],
)
def test_an_unknown_size_is_named(slot, size):
    with pytest.raises(ValueError, match=f"^sizes: '{size}' given, "):
        BENCHES[slot]().cases([size])


def test_output_layers_return_the_gradient_and_update_their_weight():
    """The second step's gradient is that of a dense weight after one step of SGD."""
    case = Case("60x4", "step")
    dense_losses = {
        "linear": F.cross_entropy,
        "factored-z-loss": lambda o, y: z_loss(o, y, 0.1, 20.0),
    }
    for name, loss in dense_losses.items():
        torch.manual_seed(0)
        step = output_bench.prepare(contestant("output-layer", name), case, "cpu")
        torch.manual_seed(0)
        weight = (
            torch.nn.Linear(4, 60, bias=False).weight
            if name == "linear"
            else FactoredSphericalLinear(4, 60, 0.1).weight.requires_grad_()
        )
        hidden, target = output_bench.batch(4, 60, seed=0)
        hidden.requires_grad_()
        for _ in range(2):
            gradients = torch.autograd.grad(loss(hidden @ weight.T, target), (hidden, weight))
            weight = (weight - output_bench.LEARNING_RATE * gradients[1]).detach().requires_grad_()
            torch.testing.assert_close(step(), gradients[0], rtol=1e-3, atol=1e-6)


def test_targets_of_output_layers_are_log_uniform():
    targets = torch.cat([output_bench.batch(1, 999, seed)[1] for seed in range(200)])
    assert targets.min() == 0 and targets.max() <= 998
    for below in (1, 9, 99):
        share = (targets < below).double().mean().item()
        assert share == pytest.approx(math.log(below + 1) / math.log(1000), abs=0.02)


@pytest.mark.parametrize("given", ["dense", "softmax", ""])
def test_an_unknown_peer_is_answered_with_the_known_ones(given):
    with pytest.raises(ValueError, match=r"^against: .* one of dense-softmax, x-transformers"):
        chosen_peers("attention", [given])


def test_an_unknown_slot_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"^slot: 'attenton' .* \(did you mean 'attention'\?\)"):
        chosen_peers("attenton", None)


def test_a_peer_that_is_not_installed_is_left_out_unless_asked_for(monkeypatch):
    monkeypatch.setitem(PACKAGES, "x-transformers", "no_such_package")
    assert "x-transformers" not in chosen_peers("attention", None)
    assert "dense-softmax" in chosen_peers("attention", None)
    with pytest.raises(ValueError, match=r'^against: .* pip install "heterodox\[bench\]"'):
        chosen_peers("attention", ["x-transformers"])


def test_peak_memory_is_that_of_the_matrices_that_are_stored():
    case = Case("1024", "forward", "full")
    matrix = 8 * 1024 * 1024 * 4  # heads x length x length in float32
    dense = peak_above_inputs("attention", "dense-softmax", case, "cpu", 1)
    if dense is None:
        pytest.skip("peak memory can be reset on Linux only")
    assert 2 * matrix <= dense < 2.5 * matrix  # logits before and after the scale
    blocked = peak_above_inputs("attention", "softmax", case, "cpu", 1)
    output = 8 * 1024 * 64 * 4
    assert 0.9 * output < blocked < 0.25 * matrix


def test_tent_by_hand_is_our_tent():
    case = Case("4", "step")
    ours, theirs = (
        adaptation_bench.prepare_adapter(contestant("adaptation", name), case, "cpu")
        for name in ("tent", "tent-by-hand")
    )
    for _ in range(3):
        torch.testing.assert_close(ours(), theirs().detach(), rtol=1e-3, atol=1e-3)


def test_unfolded_and_convolved_updates_are_equal():
    case = Case("3x2x6x4", "forward")
    updates = [
        adaptation_bench.prepare_update(contestant("hebbian-update", name), case, "cpu")()
        for name in COMPONENTS["hebbian-update"]
    ]
    torch.testing.assert_close(*updates)


@pytest.mark.parametrize("rule", ["greedy", "beam 5"])
def test_with_and_without_a_cache_the_same_is_generated(rule):
    case = Case("2x9", rule)
    cached, whole = (
        BENCHES["generation"]().prepare(contestant("generation", name), case, "cpu")()
        for name in ("cached", "whole-sequence")
    )
    assert cached.shape == (2, 9) and torch.equal(cached, whole)


@pytest.mark.parametrize("measure", ["self-BLEU", "chrF of all pairs"])
def test_similarities_at_once_are_those_pair_by_pair(measure):
    case = Case("6x20", measure)
    names = ("at-once", "pair-by-pair", *chosen_peers("text-similarity", None))
    first, *others = (
        BENCHES["text-similarity"]().prepare(contestant("text-similarity", name), case, "cpu")()
        for name in names
    )
    for other in others:
        torch.testing.assert_close(first.double(), other.double(), rtol=1e-5, atol=1e-6)


def test_physical_contestants_train_alike():
    x = torch.rand(12, 5, generator=torch.Generator().manual_seed(0))
    y = torch.arange(12) % 2  # one label is wrong, so that nothing is drawn
    losses = {}
    for name in COMPONENTS["physical"]:
        trained = {}
        make = contestant("physical", name)

        def keep(network, make=make, trained=trained):
            trained["call"] = make(network)
            return trained["call"]

        BENCHES["physical"]().prepare(keep, Case("12x5x2", "step"), "cpu")
        losses[name] = [torch.as_tensor(trained["call"](x, y)).flatten() for _ in range(3)]
    for one, other in zip(*losses.values(), strict=True):
        torch.testing.assert_close(one, other)


def test_plain_and_fast_forward_learning_train_alike():
    case = Case("karate-club-2", "step")
    for fast, plain in (("sf", "sf-plain"), ("ff-label", "ff-label-loop")):
        calls = [graph_bench.prepare(contestant("graph", n), case, "cpu") for n in (fast, plain)]
        losses: list[list[float]] = [[], []]
        for call, seen in zip(calls, losses, strict=True):
            for _ in range(3):
                seen.extend(float(loss) for loss in call())
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_delays_of_the_authors_package_cost_the_same_work():
    pytest.importorskip("DCLS", reason="needs DCLS")
    theirs, ours = delays_bench.DCLS(5, 4, 7), delays_bench.delayed(5, 4, 7)
    with torch.no_grad():
        ours.weight.copy_(theirs.layer.weight)
        ours.delay.copy_(3 - theirs.layer.P[0])
    x = torch.rand(10, 2, 5)
    torch.testing.assert_close(theirs(x), ours(x))


def test_spiking_contestants_give_the_same_spikes_and_gradients():
    current = torch.randn(12, 3, 4, requires_grad=True)
    names = ["lif", *chosen_peers("spiking", None)]
    expected = contestant("spiking", "loop")(current)
    (gradient,) = torch.autograd.grad(expected.square().sum(), current)
    for name in names:
        spikes = contestant("spiking", name)(current)
        assert torch.equal(spikes, expected)
        if name == "lif":
            torch.testing.assert_close(
                torch.autograd.grad(spikes.square().sum(), current)[0], gradient
            )


def test_the_projected_step_learns_beside_the_weights():
    model = SpikingMLP([12, 8, 8, 10])
    continual_bench.projected(model)
    assert all(layer.projecting and layer.learning for layer in model.layers)
    assert [layer.subspace.num_frozen for layer in model.layers] == [3, 2, 2]
