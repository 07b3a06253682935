"""Digital twins: networks fitted to what a physical system was measured to answer.

    twin = argmin_f  √ mean (f(x) − y)²,   f of 100, 200, 100 hidden units with SiLU

Frozen, a twin stands in for the system (`DigitalTwin`); Momeni et al., "Backpropagation-free
Training of Deep Physical Neural Networks", 2023, arXiv 2304.11042, compute their acoustic results
so, and the amplitudes that they send are h → |h| / (‖h‖ + 1e-6), as in the authors' code.
"""

import copy
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.learning.physical_layers import PhysicalLayer
from heterodox.training.batches import Shuffled
from heterodox.training.progress import report

# Keeps the norm of a row of zeros from dividing; the authors' number.
EPS = 1e-6


class DigitalTwin(PhysicalLayer):
    """A frozen network in place of the system that it was fitted to.

    Its drift turns each weight matrix W towards normal numbers of W's own root mean square.

    Args:
        module: the network; it is copied. Its first and last layer with `in_features` and
            `out_features` say how many numbers a row has.
        normalize: whether a row is sent as |h| / (‖h‖ + 1e-6), amplitudes of at most 1.
        noise, seed: as for `PhysicalLayer`.

    Raises:
        ValueError: `module` has no such layer; as `PhysicalLayer`.

    Example:
        >>> twin = DigitalTwin(nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 3)))
        >>> twin.in_features, twin.out_features, twin(torch.randn(5, 4)).requires_grad
        (4, 3, False)
    """

    def __init__(
        self, module: nn.Module, *, normalize: bool = True, noise: float = 0.0, seed: int = 0
    ) -> None:
        sized = [layer for layer in module.modules() if hasattr(layer, "in_features")]
        if not sized:
            raise ValueError(
                f"module: {type(module).__name__} given, a network with linear layers expected"
            )
        super().__init__(
            int(sized[0].in_features),  # type: ignore[arg-type]
            int(sized[-1].out_features),  # type: ignore[arg-type]
            noise=noise,
            seed=seed,
        )
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.normalize = normalize

    def train(self, mode: bool = True) -> "DigitalTwin":
        """A twin stays in evaluation mode."""
        return super().train(False)

    def simulate(
        self, x: Float[Tensor, "batch in_features"]
    ) -> Float[Tensor, "batch out_features"]:
        """The reading without noise, differentiable in x."""
        h = x.to(next(self.module.parameters(), x).dtype)
        if self.normalize:
            h = h.abs() / (h.norm(dim=1, keepdim=True) + EPS)
        y: Tensor = self.module(h)
        return y.to(x.dtype)

    def respond(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch out_features"]:
        return self.simulate(x)

    def fresh_matrices(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            f"module.{name}": weight.square().mean().sqrt()
            * torch.randn(weight.shape, generator=generator, device=generator.device).to(weight)
            for name, weight in self.module.named_parameters()
            if weight.ndim > 1
        }


@torch.enable_grad()
def fit_twin(
    x: Float[Tensor, "samples in_features"],
    y: Float[Tensor, "samples out_features"],
    *,
    hidden: Sequence[int] = (100, 200, 100),
    epochs: int = 300,
    batch_size: int = 100,
    lr: float = 1e-4,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A network that answers x with y, fitted by Adam to the root mean square error.

    Args:
        x, y: what was sent and what was read, in float32 or float64.
        hidden, epochs, batch_size, lr: those of the authors' code.
        generator: of the initial weights and of the order; by default one that starts at 0.

    Raises:
        ValueError: numbers of rows differ or are 0, values are in half precision, in which small
            steps are lost, or not finite, or `epochs`, `batch_size` or `lr` is not positive.

    Example:
        >>> x = torch.rand(200, 4, generator=torch.Generator().manual_seed(0))
        >>> twin = fit_twin(x, x.cumsum(1), hidden=(20,), epochs=60, lr=1e-2)
        >>> bool((twin(x) - x.cumsum(1)).square().mean() < 0.05)
        True
    """
    if len(x) != len(y) or not len(x):
        raise ValueError(f"y: {len(y)} rows given, {max(len(x), 1)} expected, as many as in x")
    if x.dtype.itemsize < 4:
        raise ValueError(f"x: {x.dtype} given, float32 or float64 expected")
    for name, values in (("x", x), ("y", y)):
        if not values.isfinite().all():
            raise ValueError(f"{name}: values that are not finite given, finite ones expected")
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("lr", lr)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: {value} given, a positive number expected")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    widths = [x.shape[1], *hidden, y.shape[1]]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [linear(inputs, outputs, generator), nn.SiLU()]
    twin = nn.Sequential(*layers[:-1]).to(x)
    descent = torch.optim.Adam(twin.parameters(), lr=lr, fused=True)
    batches = Shuffled((x, y), min(batch_size, len(x)), generator)
    steps = epochs * len(batches)
    for step in range(steps):
        sent, read = next(batches)
        loss = F.mse_loss(twin(sent), read).sqrt()
        descent.zero_grad()
        loss.backward()
        descent.step()
        if step % 100 == 0:
            report(step, steps)
    return twin.eval()


def linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    """`nn.Linear` as torch initialises it, from a generator; None is torch's own.

    Example:
        >>> layer = linear(4, 3, torch.Generator().manual_seed(0))
        >>> bool((layer.weight.abs() <= 0.5).all())
        True
    """
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer
