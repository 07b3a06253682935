import torch

from heterodox.layers import NORMS


def test_the_slot_builds_norms_of_the_last_dimension():
    x = torch.randn(2, 5, 8, dtype=torch.float64) * 3 + 1
    centred = x - x.mean(-1, keepdim=True)
    expected = {
        "layer": centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt(),
        "rms": x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt(),
    }
    assert set(NORMS) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(NORMS[name](8).double()(x), value)
