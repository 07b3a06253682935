import torch
from torch import nn

from heterodox.bench.live_memory import peak_of_live_tensors

KILO = torch.zeros(1000)  # 4000 bytes


def test_what_is_dropped_is_counted_no_longer():
    def chain():
        x = KILO + 1
        for _ in range(10):
            x = x + 1
        return x

    assert peak_of_live_tensors(chain) == 8000


def test_what_is_kept_is_counted_together():
    assert peak_of_live_tensors(lambda: [KILO + i for i in range(10)]) == 40000


def test_views_and_work_in_place_take_nothing():
    assert peak_of_live_tensors(lambda: KILO.clone().view(10, 100).mT.add_(1)[3:]) == 4000
    assert peak_of_live_tensors(lambda: KILO.view(10, 100).mT) == 0


def test_what_autograd_keeps_is_counted():
    x = KILO.clone().requires_grad_()
    kept = peak_of_live_tensors(lambda: x.exp().exp().exp())
    with torch.no_grad():
        dropped = peak_of_live_tensors(lambda: x.exp().exp().exp())
    assert (kept, dropped) == (12000, 8000)


def test_the_gradients_of_a_layer_are_counted():
    layer = nn.Linear(100, 100)
    gradients = 4 * (100 * 100 + 100)
    peak = peak_of_live_tensors(lambda: layer(torch.zeros(1, 100)).sum().backward())
    assert gradients <= peak < gradients + 4000


def test_counts_start_anew():
    assert peak_of_live_tensors(lambda: KILO + 1) == 4000
    assert peak_of_live_tensors(lambda: None) == 0
