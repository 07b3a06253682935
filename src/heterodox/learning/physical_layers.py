"""Physical layers: systems that compute a fixed nonlinear map, whose derivative nobody knows.

    ScatteringCavity      y = |H₂ φ(H₁ x)|,   φ(u) = u / (1 + |u|² / I_s)
    MultimodeFiber        y = |T e^{iπx}|²
    ProgrammableCavity    y = |B (diag(1/α(x)) − C)⁻¹ s|
    BlackBox              y = whatever a function of arrays returns, such as a measurement

H₁, H₂, T, B are complex Gaussian with E|H|² = 1/inputs. To drift by s is H ← cos(s) H + sin(s) H′,
with H′ drawn like H. A reading with relative noise σ is y (1 + σ ε), ε ~ N(0, 1).

The systems are stand-ins for those of Momeni et al., "Backpropagation-free Training of Deep
Physical Neural Networks", Science 382, 2023, arXiv 2304.11042: sound in a cavity with nonlinear
scatterers, light in a multimode fibre, microwaves in a room with a programmable surface. Their
equations here are reconstructions, not models of the authors' apparatus. The twin of measured data
is in `heterodox.learning.physical_twin`. Cost: two matrix products, one, and for the programmable
cavity O(batch · scatterers³).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.training.seeding import derived_seed

# Polarisabilities of a scatterer that is switched off, detuned, and on, at resonance.
OFF, ON = 0.2 + 0.1j, 1j
# Of diag(α) C, by a bound: waves that go round between scatterers fade.
SPECTRAL_RADIUS = 0.75


class PhysicalLayer(nn.Module):
    """A system that answers a row of `in_features` numbers with `out_features` readings.

    A call gives readings only: no gradient passes, whatever the system is. Subclasses define
    `respond`, the answer without noise; those that can drift define `fresh_matrices`.

    Args:
        in_features, out_features: numbers a row, in and out.
        noise: σ, the standard deviation of a reading relative to itself; 0 reads exactly.
        seed: of noise, of drifts without a generator, and of the system where it is drawn.

    Raises:
        ValueError: a size is not positive, or `noise` is negative or not finite.

    Example:
        >>> class Rectifier(PhysicalLayer):
        ...     def respond(self, x):
        ...         return x.abs()
        >>> x = torch.tensor([[-1.0, 2.0]], requires_grad=True)
        >>> Rectifier(2, 2)(x)
        tensor([[1., 2.]])
    """

    def __init__(
        self, in_features: int, out_features: int, *, noise: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise ValueError(f"{name}: {size} given, a positive number expected")
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise: {noise} given, a number from 0 on expected")
        self.in_features = in_features
        self.out_features = out_features
        self.noise = noise
        self.seed = seed
        self.readings = 0
        self.drifts = 0

    def respond(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch out_features"]:
        """The answer without noise."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it responds")

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch out_features"]:
        """One reading a row.

        Raises:
            ValueError: a row has not `in_features` numbers.
        """
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(
                f"x: shape {tuple(x.shape)} given, (batch, {self.in_features}) expected"
            )
        y = self.respond(x.detach()).detach()
        if self.noise:
            seed = derived_seed(self.seed, f"reading {self.readings}")
            self.readings += 1
            generator = torch.Generator(y.device).manual_seed(seed)
            error = torch.randn(y.shape, generator=generator, device=y.device, dtype=torch.float32)
            y = y * (1 + self.noise * error).to(y.dtype)
        return y

    def fresh_matrices(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Name -> another draw of a matrix that drifts."""
        raise NotImplementedError(f"{type(self).__name__} cannot be made to drift")

    @torch.no_grad()
    def drift(self, strength: float, *, generator: torch.Generator | None = None) -> None:
        """Changes the system in a way that nobody is told: H ← cos(s) H + sin(s) H′, in place.

        Args:
            strength: s in radians; 0 changes nothing, π/2 leaves nothing of what was.
            generator: where H′ comes from; by default from the layer's seed, each time anew.

        Raises:
            ValueError: `strength` is not finite.
            NotImplementedError: the system has no matrices that are known.

        Example:
            >>> cavity = ScatteringCavity(4, 3)
            >>> x = torch.rand(2, 4)
            >>> before = cavity(x)
            >>> cavity.drift(0.0)
            >>> torch.equal(cavity(x), before)
            True
            >>> cavity.drift(0.5)
            >>> torch.equal(cavity(x), before)
            False
        """
        if not math.isfinite(strength):
            raise ValueError(f"strength: {strength} given, a finite number expected")
        if generator is None:
            seed = derived_seed(self.seed, f"drift {self.drifts}")
            generator = torch.Generator().manual_seed(seed)
        known = dict(self.named_buffers()) | dict(self.named_parameters())
        for name, fresh in self.fresh_matrices(generator).items():
            matrix = known[name]
            matrix.mul_(math.cos(strength)).add_(fresh.to(matrix), alpha=math.sin(strength))
        self.drifts += 1


class BlackBox(PhysicalLayer):
    """A physical layer that is a function of NumPy arrays: an instrument, a file of measurements.

    Args:
        function: from an array (batch, in_features) to one (batch, out_features). It is called once
            for all rows of a layer's input, and may be as unpredictable as it likes.
        in_features, out_features, noise, seed: as for `PhysicalLayer`; an instrument has noise of
            its own.

    Raises:
        ValueError: as `PhysicalLayer`; in a call, `function` returns another shape.

    Example:
        >>> box = BlackBox(lambda x: np.tanh(x[:, :1] * x[:, 1:]), 3, 2)
        >>> box(torch.ones(4, 3)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], np.ndarray],
        in_features: int,
        out_features: int,
        *,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(in_features, out_features, noise=noise, seed=seed)
        self.function = function

    def respond(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch out_features"]:
        array = x.to("cpu", torch.promote_types(x.dtype, torch.float32)).numpy()
        read = torch.from_numpy(np.array(self.function(array)))
        if read.shape != (len(x), self.out_features):
            raise ValueError(
                f"function: shape {tuple(read.shape)} returned, "
                f"{(len(x), self.out_features)} expected"
            )
        return read.to(x)


class _Simulation(PhysicalLayer):
    """A system that is known here, and to the trainer only by its readings.

    `simulate` is differentiable, for baselines that are allowed to know it.
    """

    def __init__(
        self, in_features: int, out_features: int, *, noise: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(in_features, out_features, noise=noise, seed=seed)
        generator = torch.Generator().manual_seed(derived_seed(seed, "system"))
        for name, matrix in self.fresh_matrices(generator).items():
            self.register_buffer(name, matrix.to(torch.get_default_dtype()))

    def simulate(
        self, x: Float[Tensor, "batch in_features"]
    ) -> Float[Tensor, "batch out_features"]:
        raise NotImplementedError

    def respond(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch out_features"]:
        return self.simulate(x)

    def _matrix(self, name: str, x: Tensor) -> Tensor:
        """A complex matrix in the precision of x, half precision in single.

        Buffers are real, with the parts in a last axis: to(dtype) of a module drops the imaginary
        part of a complex one.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        return torch.view_as_complex(self.get_buffer(name).to(dtype))


class ScatteringCavity(_Simulation):
    """Waves in a cavity with saturable scatterers: y = |H₂ φ(H₁ x)|, φ(u) = u / (1 + |u|² / I_s).

    Args:
        in_features, out_features, noise, seed: as for `PhysicalLayer`.
        modes: M, the number of scatterers; 64 here.
        saturation: I_s, the intensity at which a scatterer lets half through; 1 here.

    Raises:
        ValueError: as `PhysicalLayer`; `modes` or `saturation` is not positive.

    Example:
        >>> ScatteringCavity(20, 30)(torch.rand(5, 20)).shape
        torch.Size([5, 30])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        modes: int = 64,
        saturation: float = 1.0,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        if modes < 1:
            raise ValueError(f"modes: {modes} given, a positive number expected")
        if not 0 < saturation < math.inf:
            raise ValueError(f"saturation: {saturation} given, a positive number expected")
        self.modes = modes
        super().__init__(in_features, out_features, noise=noise, seed=seed)
        self.saturation = saturation

    def fresh_matrices(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "inward": complex_gaussian(self.modes, self.in_features, generator),
            "outward": complex_gaussian(self.out_features, self.modes, generator),
        }

    def simulate(
        self, x: Float[Tensor, "batch in_features"]
    ) -> Float[Tensor, "batch out_features"]:
        """The reading without noise, differentiable."""
        inward, outward = self._matrix("inward", x), self._matrix("outward", x)
        u = x.to(inward.dtype) @ inward.mT
        scattered = u / (1 + intensity(u) / self.saturation)
        return (scattered @ outward.mT).abs().to(x.dtype)


class MultimodeFiber(_Simulation):
    """Light that carries x in its phase, mixed by a fibre, read as intensity: y = |T e^{iπx}|².

    The map is linear in the field; phases and intensities make it nonlinear in x.

    Args:
        in_features, out_features, noise, seed: as for `PhysicalLayer`.

    Example:
        >>> fiber = MultimodeFiber(20, 30)
        >>> bool((fiber(torch.rand(5, 20)) >= 0).all())
        True
    """

    def fresh_matrices(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"transmission": complex_gaussian(self.out_features, self.in_features, generator)}

    def simulate(
        self, x: Float[Tensor, "batch in_features"]
    ) -> Float[Tensor, "batch out_features"]:
        """The reading without noise, differentiable."""
        transmission = self._matrix("transmission", x)
        phase = math.pi * x.to(transmission.real.dtype)
        field = torch.complex(phase.cos(), phase.sin())
        return intensity(field @ transmission.mT).to(x.dtype)


class ProgrammableCavity(_Simulation):
    """Coupled scatterers whose polarisabilities α are the input: y = |B (diag(1/α(x)) − C)⁻¹ s|.

    A row of x is scaled to [0, 1] by its least and largest number. Then α is on the line between
    the polarisabilities "off" and "on"; or with `bits`, each number switches two scatterers: 00 for
    0, 01 up to ¼, 10 up to ¾, 11 above, as in the microwave experiment. The wave s goes in, C
    couples the scatterers, symmetric and without a diagonal, and B leads to the receivers. C is
    scaled so that the spectral radius of diag(α) C is at most 0.75 for any x.

    Args:
        in_features, out_features, noise, seed: as for `PhysicalLayer`.
        bits: whether scatterers are switched; the derivative of `simulate` is then 0.

    Example:
        >>> ProgrammableCavity(10, 6, bits=True)(torch.rand(5, 10)).shape
        torch.Size([5, 6])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: bool = False,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.bits = bits
        super().__init__(in_features, out_features, noise=noise, seed=seed)

    def fresh_matrices(self, generator: torch.Generator) -> dict[str, Tensor]:
        scatterers = self.in_features * (2 if self.bits else 1)
        coupling = complex_gaussian(scatterers, scatterers, generator)
        coupling = (coupling + coupling.transpose(0, 1)) / math.sqrt(2)
        coupling.diagonal(dim1=0, dim2=1).zero_()
        return {
            "coupling": _bounded(coupling),
            "incoming": complex_gaussian(1, scatterers, generator),
            "receivers": complex_gaussian(self.out_features, scatterers, generator),
        }

    def drift(self, strength: float, *, generator: torch.Generator | None = None) -> None:
        super().drift(strength, generator=generator)
        if strength:
            coupling = self.get_buffer("coupling")
            coupling.copy_(_bounded(coupling))

    def simulate(
        self, x: Float[Tensor, "batch in_features"]
    ) -> Float[Tensor, "batch out_features"]:
        """The reading without noise, differentiable unless the input is switched by bits."""
        coupling, incoming = self._matrix("coupling", x), self._matrix("incoming", x)
        receivers = self._matrix("receivers", x)
        alpha = OFF + (ON - OFF) * self._switched(x.to(receivers.real.dtype))
        # (diag(1/α) − C)⁻¹ s = (1 − diag(α) C)⁻¹ α s, which needs no division by α.
        system = torch.eye(len(coupling), device=x.device) - alpha[:, :, None] * coupling
        moments = torch.linalg.solve(system, alpha * incoming)
        return (moments @ receivers.mT).abs().to(x.dtype)

    def _switched(self, x: Tensor) -> Tensor:
        """How far each scatterer is switched on, 0 to 1."""
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        level = (x - low) / torch.where(high > low, high - low, 1.0)
        if not self.bits:
            return level
        code = (level > 0).to(x.dtype) + (level > 0.25) + (level > 0.75)
        return torch.stack([(code >= 2).to(x.dtype), code % 2], dim=2).flatten(1)


def _bounded(
    coupling: Float[Tensor, "scatterers scatterers parts"],
) -> Float[Tensor, "scatterers scatterers parts"]:
    """C of the norm that bounds the spectral radius of diag(α) C, which is at most max |α| ‖C‖₂."""
    norm = torch.linalg.matrix_norm(torch.view_as_complex(coupling.double()), 2)
    bound = SPECTRAL_RADIUS / max(abs(OFF), abs(ON))
    # One scatterer has nothing to be coupled to.
    return coupling * torch.where(norm > 0, bound / norm, 1.0).to(coupling.dtype)


def complex_gaussian(
    rows: int, columns: int, generator: torch.Generator
) -> Float[Tensor, "rows columns parts"]:
    """Complex normal numbers with E|z|² = 1/columns, real and imaginary part in the last axis.

    Example:
        >>> z = complex_gaussian(500, 400, torch.Generator().manual_seed(0))
        >>> round((400 * z.square().sum(-1)).mean().item(), 2)
        1.0
    """
    z = torch.randn(
        (rows, columns, 2), generator=generator, device=generator.device, dtype=torch.float64
    )
    return z / math.sqrt(2 * columns)


def intensity(z: Tensor) -> Tensor:
    """|z|².

    Example:
        >>> intensity(torch.tensor([3 + 4j]))
        tensor([25.])
    """
    return z.real.square() + z.imag.square()
