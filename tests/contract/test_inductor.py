"""torch.compile with its default backend, once: it takes a C++ compiler and seconds."""

import shutil

import pytest
import torch

from heterodox.models.transformer import DecoderLM
from heterodox.training.seeding import seeded


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_compiles_a_decoder_with_sigmoid_attention():
    with seeded(0):
        model = DecoderLM(11, width=16, layers=1, heads=2, length=8, attention="sigmoid")
        tokens = torch.randint(11, (2, 8))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    expected, actual = model(tokens), compiled(tokens)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    weight = model.embedding.weight
    (gradient,) = torch.autograd.grad(expected.square().sum(), weight)
    (compiled_gradient,) = torch.autograd.grad(actual.square().sum(), weight)
    torch.testing.assert_close(compiled_gradient, gradient, rtol=1e-4, atol=1e-5)
