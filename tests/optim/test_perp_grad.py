import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from heterodox.optim import PerpGrad, project_orthogonal

SHAPES = [(7, 5), (5,), (3, 2, 2), (64, 64)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters(*, dtype=torch.float32, shapes=SHAPES, seed=0):
    """Random parameters with random gradients, the same ones for the same seed."""
    source = generator(seed)
    made = []
    for shape in shapes:
        p = nn.Parameter(torch.randn(shape, generator=source, dtype=torch.float64).to(dtype))
        p.grad = torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)
        made.append(p)
    return made


def regrad(params, seed):
    source = generator(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=source).to(p.dtype)


def reference(w, g, rescale=True):
    """The paper's equation in float64."""
    w, g = w.detach().double(), g.double()
    perpendicular = g - (w * g).sum() / (w * w).sum() * w
    return perpendicular * (g.norm() / perpendicular.norm() if rescale else 1.0)


def cosine(a, b):
    return F.cosine_similarity(a.detach().double().flatten(), b.double().flatten(), 0).item()


def applied_gradients(optimizer, params):
    """What a step hands to its base, which is to be SGD with lr 1: it subtracts just that."""
    before = [p.detach().clone() for p in params]
    optimizer.step()
    return [b - p.detach() for b, p in zip(before, params, strict=True)]


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 8e-3)]
)
def test_the_projection_is_the_equation_of_the_paper(dtype, tolerance, rescale):
    for p in parameters(dtype=dtype):
        projected = project_orthogonal(p.detach(), p.grad, rescale=rescale)
        assert projected.dtype == dtype
        expected = reference(p, p.grad, rescale)
        torch.testing.assert_close(projected.double(), expected, rtol=tolerance, atol=tolerance)


def test_the_projection_is_orthogonal_to_the_weight_and_keeps_the_length():
    for p in parameters(shapes=[(5,), (300, 400)]):
        p.grad += 3 * p.detach()  # mostly along the weight
        projected = project_orthogonal(p.detach(), p.grad)
        assert abs(cosine(p, projected)) < 1e-6
        assert projected.norm().item() == pytest.approx(p.grad.norm().item(), rel=1e-6)
        shorter = project_orthogonal(p.detach(), p.grad, rescale=False)
        sine = (1 - cosine(p, p.grad) ** 2) ** 0.5
        assert shorter.norm().item() == pytest.approx(sine * p.grad.norm().item(), rel=1e-5)


def test_projecting_twice_is_projecting_once():
    (p,) = parameters(shapes=[(6, 4)], dtype=torch.float64)
    once = project_orthogonal(p.detach(), p.grad)
    torch.testing.assert_close(project_orthogonal(p.detach(), once), once)


def test_the_length_of_the_weight_does_not_matter():
    (p,) = parameters(shapes=[(6, 4)], dtype=torch.float64)
    expected = project_orthogonal(p.detach(), p.grad)
    for factor in (-1.0, 1e-8, 1e8):
        torch.testing.assert_close(project_orthogonal(factor * p.detach(), p.grad), expected)


def test_a_zero_weight_leaves_the_gradient_and_a_zero_gradient_stays_zero():
    g = torch.randn(4, 3, generator=generator())
    torch.testing.assert_close(project_orthogonal(torch.zeros(4, 3), g), g)
    assert torch.equal(project_orthogonal(g, torch.zeros(4, 3)), torch.zeros(4, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("factor", [3.0, -1e-3])
@pytest.mark.parametrize("size", [2, 1000, 300_000])
def test_a_gradient_along_the_weight_gives_zeros_not_noise(size, factor, dtype):
    w = torch.rand(size, generator=generator(), dtype=torch.float64).to(dtype)
    g = w * factor if dtype != torch.bfloat16 else w * 2.0  # exact in bfloat16
    assert torch.equal(project_orthogonal(w, g), torch.zeros_like(g))
    p = nn.Parameter(w.clone())
    p.grad = g
    PerpGrad(SGD([p], lr=1.0)).step()
    assert torch.equal(p.detach(), w)


def test_a_gradient_just_off_the_weight_is_not_taken_for_noise():
    w = torch.zeros(1000)
    w[0] = 1.0
    g = w.clone()
    g[1] = 1e-5
    expected = torch.zeros(1000)
    expected[1] = 1.0
    torch.testing.assert_close(project_orthogonal(w, g), expected)


def test_weight_and_gradient_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"^gradient: shape \(3, 2\)"):
        project_orthogonal(torch.ones(2, 3), torch.ones(3, 2))


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_step_on_lists_is_the_projection_of_each_tensor(dtype, rescale):
    params = parameters(dtype=dtype)
    params[2].data = params[2].data.transpose(0, 1)  # not contiguous
    params[2].grad = params[2].grad.transpose(0, 1).contiguous()
    expected = [project_orthogonal(p.detach(), p.grad, rescale=rescale) for p in params]
    optimizer = PerpGrad(SGD(params, lr=1.0), rescale=rescale)
    seen = []
    optimizer.base_optimizer.register_step_pre_hook(
        lambda base, args, kwargs: seen.extend(p.grad.clone() for p in params)
    )
    optimizer.step()
    torch.testing.assert_close(seen, expected)


def test_tensors_of_several_types_and_groups_are_each_projected():
    params = [*parameters(), *parameters(dtype=torch.float64, seed=1)]
    expected = [p.detach() - reference(p, p.grad).to(p.dtype) for p in params]
    optimizer = PerpGrad(SGD([{"params": params[::2]}, {"params": params[1::2]}], lr=1.0))
    optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], expected)


def test_a_long_tensor_is_projected_to_the_last_digits():
    # 1e6 squares added one by one in float32 are 2e-6 off, and so would be the projection.
    (p,) = parameters(shapes=[(1_000_000,)])
    p.data += 1.0
    p.grad += 1.0
    optimizer = PerpGrad(SGD([p], lr=1.0))
    seen = []
    optimizer.base_optimizer.register_step_pre_hook(lambda *_: seen.append(p.grad.clone()))
    optimizer.step()
    assert abs(cosine(p, p.grad)) > 0.1
    assert abs(cosine(p.detach() + seen[0], seen[0])) < 5e-7


def test_a_step_along_the_weights_is_all_that_the_projection_takes_away():
    # Scale-invariant loss: its gradient is orthogonal already, so the wrapper changes nothing.
    w = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    results = []
    for wrap in (lambda base: base, PerpGrad):
        p = nn.Parameter(w.clone())
        optimizer = wrap(SGD([p], lr=0.1, momentum=0.9))
        for _ in range(5):
            optimizer.zero_grad()
            (p / p.norm())[0].sum().backward()
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results)


def test_one_element_tensors_keep_their_gradient():
    params = parameters(shapes=[(1,), (), (1, 1), (2,)])
    gradients = [p.grad.clone() for p in params]
    changes = applied_gradients(PerpGrad(SGD(params, lr=1.0)), params)
    torch.testing.assert_close(changes[:3], gradients[:3])
    assert cosine(params[3].detach() + changes[3], changes[3]) == pytest.approx(0, abs=1e-6)


def test_gradients_are_the_users_own_tensors_before_and_after_a_step():
    params = parameters()
    gradients = [p.grad for p in params]
    values = [g.clone() for g in gradients]
    optimizer = PerpGrad(AdamW(params, lr=0.1))
    optimizer.step()
    for p, gradient, value in zip(params, gradients, values, strict=True):
        assert p.grad is gradient and torch.equal(gradient, value)
    optimizer.base_optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert all(p.grad is gradient for p, gradient in zip(params, gradients, strict=True))


def test_parameters_without_gradient_or_elements_are_left_alone():
    params = parameters()
    params[0].grad = None
    params.append(nn.Parameter(torch.empty(0)))
    params[-1].grad = torch.empty(0)
    before = params[0].detach().clone()
    PerpGrad(SGD(params, lr=1.0)).step()
    assert torch.equal(params[0], before) and params[0].grad is None
    for p in params:
        p.grad = None
    PerpGrad(SGD(params, lr=1.0)).step()


def test_a_gradient_that_is_not_finite_does_not_become_a_zero():
    (p,) = parameters(shapes=[(4,)])
    p.grad[1] = torch.nan
    PerpGrad(SGD([p], lr=1.0)).step()
    assert p.isnan().all()


def test_sparse_and_complex_gradients_are_refused_before_anything_moves():
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"^gradient: torch.sparse_coo"):
        PerpGrad(SGD(embedding.parameters(), lr=1.0)).step()
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"^gradient: torch.complex64"):
        PerpGrad(SGD([p], lr=1.0)).step()
    assert torch.equal(p.detach(), torch.ones_like(p))


@pytest.mark.parametrize(
    ("argument", "bad"),
    [("base_optimizer", {"base_optimizer": SGD}), ("eps", {"eps": 0.0}), ("eps", {"eps": -1.0})],
)
def test_bad_input_names_the_argument(argument, bad):
    good = {"base_optimizer": SGD(parameters(), lr=1.0)}
    with pytest.raises(ValueError, match=f"^{argument}: "):
        PerpGrad(**{**good, **bad})


def test_a_closure_is_called_once_and_its_gradients_are_the_projected_ones():
    params = parameters(shapes=[(4, 3)])
    stale, target = params[0].grad.clone(), torch.randn(4, 3, generator=generator(9))
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (params[0] * target).sum()
        loss.backward()
        return loss

    optimizer = PerpGrad(SGD(params, lr=1.0))
    w = params[0].detach().clone()
    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True] and loss.item() == pytest.approx((w * target).sum().item())
    torch.testing.assert_close(w - params[0].detach(), project_orthogonal(w, target))
    assert not torch.allclose(w - params[0].detach(), project_orthogonal(w, stale))


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: LambdaLR(optimizer, lambda step: 0.5**step),
        lambda optimizer: OneCycleLR(optimizer, max_lr=0.3, total_steps=6),
    ],
    ids=["LambdaLR", "OneCycleLR"],
)
def test_a_schedule_on_the_wrapper_reaches_the_base_without_a_warning(make):
    bare, wrapped = parameters(), parameters()
    peer, optimizer = AdamW(bare, lr=0.1), PerpGrad(AdamW(wrapped, lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedules = make(peer), make(optimizer)
        for _ in range(4):
            peer.step()
            optimizer.step()
            for schedule in schedules:
                schedule.step()
            ours, theirs = optimizer.base_optimizer.param_groups[0], peer.param_groups[0]
            assert {k: v for k, v in ours.items() if k != "params"} == {
                k: v for k, v in theirs.items() if k != "params"
            }
    assert optimizer.param_groups[0]["lr"] != 0.1


def test_a_step_uses_the_learning_rate_of_the_schedule():
    params = parameters()
    expected = [p.detach() - 0.25 * reference(p, p.grad).float() for p in params]
    optimizer = PerpGrad(SGD(params, lr=1.0))
    LambdaLR(optimizer, lambda step: 0.25)
    optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], expected)


@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_unscales_before_the_projection_and_skips_overflow(fused):
    plain, scaled = parameters(shapes=[(4, 3)]), parameters(shapes=[(4, 3)])
    factor = torch.randn(4, 3, generator=generator(5))
    scaler = torch.amp.GradScaler(device="cpu", init_scale=1024.0)
    optimizers = [PerpGrad(AdamW(p, lr=0.1, fused=fused)) for p in (plain, scaled)]
    for _ in range(3):
        for optimizer, (p,), scale in zip(optimizers, (plain, scaled), (None, scaler), strict=True):
            optimizer.zero_grad()
            loss = (p * factor).square().sum()
            (loss if scale is None else scale.scale(loss)).backward()
            optimizer.step() if scale is None else scale.step(optimizer)
        scaler.update()
    torch.testing.assert_close(scaled[0], plain[0])
    before = scaled[0].detach().clone()
    optimizers[1].zero_grad()
    scaler.scale(scaled[0].sum() * torch.inf).backward()
    scaler.step(optimizers[1])
    scaler.update()
    assert torch.equal(scaled[0].detach(), before) and scaler.get_scale() == 512.0


def test_clipping_before_the_step_bounds_the_step():
    params = parameters()
    nn.utils.clip_grad_norm_(params, 0.5)
    changes = applied_gradients(PerpGrad(SGD(params, lr=1.0)), params)
    length = torch.stack([change.norm() for change in changes]).norm()
    assert length.item() == pytest.approx(0.5, rel=1e-4)


def test_weight_decay_acts_after_the_projection():
    params = parameters(shapes=[(4, 3)])
    w, g = params[0].detach().clone(), params[0].grad
    PerpGrad(SGD(params, lr=1.0, weight_decay=0.1)).step()
    torch.testing.assert_close(params[0].detach(), w - 0.1 * w - project_orthogonal(w, g))


def steps(optimizer, params, seeds):
    for seed in seeds:
        regrad(params, seed)
        optimizer.step()


@pytest.mark.parametrize("into", ["wrapper", "base"])
def test_a_reloaded_run_goes_on_as_if_it_had_not_stopped(into):
    params = parameters()
    optimizer = PerpGrad(AdamW(params, lr=0.1, betas=(0.8, 0.9), eps=1e-25))
    steps(optimizer, params, [1, 2])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = [nn.Parameter(p.detach().clone()) for p in params]
    fresh = PerpGrad(AdamW(resumed, lr=7.0))
    target = fresh if into == "wrapper" else fresh.base_optimizer
    target.load_state_dict(torch.load(file))

    group = fresh.base_optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.8, 0.9), 1e-25)
    assert fresh.param_groups is fresh.base_optimizer.param_groups
    assert fresh.state is fresh.base_optimizer.state
    steps(optimizer, params, [3, 4])
    steps(fresh, resumed, [3, 4])
    assert all(torch.equal(a, b) for a, b in zip(params, resumed, strict=True))


def test_after_a_reload_schedules_and_groups_still_reach_the_base():
    params = parameters()
    optimizer = PerpGrad(AdamW(params, lr=0.1))
    schedule = LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    schedule.step()
    assert optimizer.base_optimizer.param_groups[0]["lr"] == 0.05
    optimizer.param_groups[0]["betas"] = (0.5, 0.6)
    assert optimizer.base_optimizer.param_groups[0]["betas"] == (0.5, 0.6)


def test_state_dict_hooks_of_wrapper_and_base_are_run():
    optimizer = PerpGrad(AdamW(parameters(), lr=0.1))
    seen = []
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("saved"))
    optimizer.base_optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["saved", "loaded"]


def test_step_hooks_of_wrapper_and_base_are_run():
    optimizer = PerpGrad(AdamW(parameters(), lr=0.1))
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append("wrapper"))
    optimizer.base_optimizer.register_step_post_hook(lambda *_: seen.append("base"))
    optimizer.step()
    assert seen == ["base", "wrapper"]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"]
)
def test_a_duplicate_steps_like_the_original_and_shares_nothing_with_it(duplicate):
    params = parameters()
    optimizer = PerpGrad(AdamW(params, lr=0.1), rescale=False, eps=1e-20)
    LambdaLR(optimizer, lambda step: 1.0)
    steps(optimizer, params, [1])
    twin = duplicate(optimizer)
    twins = twin.param_groups[0]["params"]
    assert (twin.rescale, twin.eps) == (False, 1e-20)
    assert twin.param_groups is twin.base_optimizer.param_groups
    steps(optimizer, params, [2, 3])
    assert not torch.equal(twins[0], params[0])
    steps(twin, twins, [2, 3])
    assert all(torch.equal(a, b) for a, b in zip(params, twins, strict=True))


def test_an_added_group_is_projected_with_the_settings_given():
    params = parameters(shapes=[(4, 3), (3, 2)])
    optimizer = PerpGrad(SGD(params[:1], lr=1.0))
    optimizer.add_param_group({"params": params[1:], "lr": 0.5})
    assert len(optimizer.base_optimizer.param_groups) == 2
    w = params[1].detach().clone()
    optimizer.step()
    expected = w - 0.5 * project_orthogonal(w, params[1].grad)
    torch.testing.assert_close(params[1].detach(), expected)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": params[1:]})


def test_zero_grad_clears_and_printing_shows_the_groups():
    params = parameters()
    optimizer = PerpGrad(AdamW(params, lr=0.125, foreach=True))
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    assert "lr: 0.125" in repr(optimizer)


def test_an_optimizer_with_a_history_keeps_it_when_wrapped():
    params = parameters()
    base = AdamW(params, lr=0.1)
    steps(base, params, [1, 2])
    optimizer = PerpGrad(base)
    assert optimizer.state[params[0]]["step"] == 2
    steps(optimizer, params, [3])
    assert base.state[params[0]]["step"] == 3


def test_lightning_fabric_can_set_it_up():
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1)
    model = nn.Linear(4, 3, bias=False)
    base = SGD(model.parameters(), lr=1.0)
    w = model.weight.detach().clone()
    model, optimizer = fabric.setup(model, PerpGrad(base))
    fabric.backward(model(torch.randn(8, 4, generator=generator())).square().sum())
    expected = w - project_orthogonal(w, model.weight.grad)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), expected)
    optimizer.load_state_dict(optimizer.state_dict())
