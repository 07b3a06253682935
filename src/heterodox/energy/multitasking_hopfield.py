"""The multitasking Hopfield network: patterns with blanks, of which several are recalled at once.

    H(σ) = −½ Σ_{i≠j} J_ij σ_i σ_j,  J = FᵀF / N less its diagonal,  P(σ_i → 1) = ½ (1 + tanh β h_i)
    storing: F = ξ;   supervised: F = η̄ / √𝓡;   unsupervised: F = η / √(M 𝓡), a row an example

Agliari, Alessandrelli, Barra and Ricci-Tersenghi, "Parallel Learning by Multitasking Neural
Networks", J. Stat. Mech. 2023, arXiv 2308.04106. A pattern leaves its blank entries free, and these
neurons align with further patterns. The paper's energies have one more constant in front, which a
change of β undoes. No N x N matrix is formed: a step costs O(features · N), for each replica.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.energy.diluted_patterns import (
    check_entries,
    check_quality,
    dataset_entropy,
    dataset_normalizer,
    estimate_normalizer,
    estimate_quality,
    examples_needed,
    sample_examples,
    sample_patterns,
)
from heterodox.energy.hopfield_theory import (
    SelfConsistency,
    critical_dilution,
    recall_free_energy,
    solve_self_consistency,
)
from heterodox.energy.sampling import check_beta, sample_spins

__all__ = [
    "MultitaskingHopfield",
    "SelfConsistency",
    "critical_dilution",
    "dataset_entropy",
    "dataset_normalizer",
    "estimate_normalizer",
    "estimate_quality",
    "examples_needed",
    "hebbian_couplings",
    "mattis_magnetization",
    "recall_free_energy",
    "recall_loss",
    "sample_examples",
    "sample_patterns",
    "solve_self_consistency",
    "supervised_couplings",
    "unsupervised_couplings",
]


def hebbian_couplings(patterns: Float[Tensor, "patterns size"]) -> Float[Tensor, "size size"]:
    """J of stored patterns, with a diagonal of zeros; to look at, as the network needs no J.

    Raises:
        ValueError: an entry is none of −1, 0 and 1.

    Example:
        >>> hebbian_couplings(torch.tensor([[1.0, -1.0]]))
        tensor([[ 0.0000, -0.5000],
                [-0.5000,  0.0000]])
    """
    check_entries("patterns", patterns, 2)
    return _couplings(patterns)


def supervised_couplings(
    examples: Float[Tensor, "patterns examples size"], quality: float | None = None
) -> Float[Tensor, "size size"]:
    """J of the means of examples, of which a teacher says to what pattern they belong.

    Args:
        examples: entries −1, 0 and 1.
        quality: r in (0, 1]; None takes 𝓡 from the examples, see `estimate_normalizer`.

    Raises:
        ValueError: an entry is none of −1, 0 and 1, or `quality` is out of range.

    Example:
        >>> examples = torch.tensor([[[1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]])
        >>> supervised_couplings(examples, quality=1.0).abs().max()
        tensor(0.)
    """
    return _couplings(_supervised_factors(examples, quality))


def unsupervised_couplings(
    examples: Float[Tensor, "patterns examples size"], quality: float | None = None
) -> Float[Tensor, "size size"]:
    """J of examples that are stored one by one, as without a teacher.

    Arguments and errors as for `supervised_couplings`.

    Example:
        >>> examples = torch.tensor([[[1.0, -1.0, 0.0], [1.0, 1.0, 1.0]]])
        >>> unsupervised_couplings(examples, quality=1.0)
        tensor([[0.0000, 0.0000, 0.1667],
                [0.0000, 0.0000, 0.1667],
                [0.1667, 0.1667, 0.0000]])
    """
    return _couplings(_unsupervised_factors(examples, quality))


def mattis_magnetization(
    patterns: Float[Tensor, "patterns size"], spins: Float[Tensor, "*replicas size"]
) -> Float[Tensor, "*replicas patterns"]:
    """m_μ = (1/N) Σ_i ξ_i^μ σ_i, at most 1 − d.

    Raises:
        ValueError: the sizes differ.

    Example:
        >>> patterns = torch.tensor([[1.0, -1.0, 0.0, 0.0]])
        >>> mattis_magnetization(patterns, torch.tensor([1.0, -1.0, 1.0, 1.0]))
        tensor([0.5000])
    """
    _check_size(spins, patterns.shape[-1])
    return spins @ patterns.mT / patterns.shape[-1]


def recall_loss(
    patterns: Float[Tensor, "patterns size"], spins: Float[Tensor, "*replicas size"]
) -> Float[Tensor, "*replicas patterns"]:
    """L₊ L₋, with L± = ‖ξ ∓ σ‖² / 2N: small if a pattern or its negative is recalled.

    With a = Σ_i ξ_i² / N it is ((1 + a) / 2)² − m², so that the energy is half of N times its sum,
    less constants: minimising the energy minimises the losses.

    Raises:
        ValueError: the sizes differ.

    Example:
        >>> patterns = torch.tensor([[1.0, -1.0]])
        >>> recall_loss(patterns, torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]))
        tensor([[0.],
                [0.],
                [1.]])
    """
    m = mattis_magnetization(patterns, spins)
    activity = patterns.square().sum(-1) / patterns.shape[-1]
    return ((1 + activity) / 2).square() - m.square()


class MultitaskingHopfield(nn.Module):
    """A network of spins ±1 whose couplings are held as a few rows of factors.

    Nothing is learned by gradients; the factors are a buffer. Make it by `from_patterns` or
    `from_examples`.

    Args:
        factors: F, a row a stored pattern or example.

    Raises:
        ValueError: `factors` is no matrix, or empty.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> patterns = sample_patterns(2, 2000, 0.4, generator=generator)
        >>> network = MultitaskingHopfield.from_patterns(patterns)
        >>> start = torch.where(patterns[0] == 0, 1.0, patterns[0])
        >>> spins = network.sample(start, beta=20.0, steps=20, generator=generator)
        >>> first, second = mattis_magnetization(patterns, spins).abs().tolist()
        >>> first > 0.55, second > 0.2
        (True, True)
    """

    factors: Tensor

    def __init__(self, factors: Float[Tensor, "features size"]) -> None:
        super().__init__()
        if factors.ndim != 2 or factors.numel() == 0:
            raise ValueError(
                f"factors: shape {tuple(factors.shape)} given, (features, size) without zeros "
                "expected"
            )
        self.register_buffer("factors", factors)

    @classmethod
    def from_patterns(cls, patterns: Float[Tensor, "patterns size"]) -> "MultitaskingHopfield":
        """A network that stores the patterns themselves.

        Raises:
            ValueError: there are none, or an entry is none of −1, 0 and 1.
        """
        check_entries("patterns", patterns, 2)
        return cls(patterns.clone())

    @classmethod
    def from_examples(
        cls,
        examples: Float[Tensor, "patterns examples size"],
        *,
        supervised: bool = True,
        quality: float | None = None,
    ) -> "MultitaskingHopfield":
        """A network that has only seen examples.

        Args:
            examples: entries −1, 0 and 1.
            supervised: whether it is told which examples belong together. If so, it has a row of
                factors for each pattern, else one for each example.
            quality: r in (0, 1]; None takes 𝓡 from the examples, see `estimate_normalizer`.

        Raises:
            ValueError: there are none, an entry is none of −1, 0 and 1, or `quality` is out of
                range.
        """
        make = _supervised_factors if supervised else _unsupervised_factors
        return cls(make(examples, quality))

    @property
    def size(self) -> int:
        """N, the number of neurons."""
        return self.factors.shape[1]

    def energy(self, spins: Float[Tensor, "*replicas size"]) -> Float[Tensor, "*replicas"]:
        """H(σ).

        Raises:
            ValueError: the last axis is not the network's, or a spin neither −1 nor 1.
        """
        self._check_spins(spins)
        overlaps = spins @ self.factors.mT
        return -0.5 * (overlaps.square().sum(-1) / self.size - self._diagonal().sum())

    def local_field(
        self, spins: Float[Tensor, "*replicas size"]
    ) -> Float[Tensor, "*replicas size"]:
        """h = J σ.

        Raises:
            ValueError: as `energy`.
        """
        self._check_spins(spins)
        return self._field(spins, self._diagonal())

    def sample(
        self,
        spins: Float[Tensor, "*replicas size"],
        beta: float,
        steps: int,
        *,
        dynamics: str = "parallel",
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*replicas size"]:
        """Spins after `steps` steps from `spins`, each replica with its own noise.

        Args:
            spins: first states.
            beta: inverse temperature; `math.inf` lets a spin follow its field, or stay where that
                is 0.
            steps: of N updates each.
            dynamics: "parallel", all neurons at once (Little): fast, and with the same
                magnetisations for many neurons and few patterns. "sequential", one neuron after
                the other in a new random order each step (Glauber), whose law tends to
                exp(−β H) / Z.
            generator: on the device of `spins`; the global one by default.

        Raises:
            ValueError: as `energy`; or `beta` or `steps` is negative, or `dynamics` is neither.
        """
        self._check_spins(spins)
        check_beta(beta)
        if steps < 0:
            raise ValueError(f"steps: {steps} given, a number that is not negative expected")
        if dynamics not in ("parallel", "sequential"):
            raise ValueError(f"dynamics: {dynamics!r} given, 'parallel' or 'sequential' expected")
        states = spins.reshape(-1, self.size).clone()
        diagonal = self._diagonal()
        for _ in range(steps):
            if dynamics == "parallel":
                field = self._field(states, diagonal)
                states = sample_spins(field, beta, current=states, generator=generator)
            else:
                self._sweep(states, beta, diagonal, generator)
        return states.view(spins.shape)

    def _sweep(
        self, states: Tensor, beta: float, diagonal: Tensor, generator: torch.Generator | None
    ) -> None:
        """Updates every neuron of all replicas in place; overlaps follow each flip."""
        # Columns of the transposes are rows, which lie together in memory.
        columns, neurons = self.factors.mT.contiguous(), states.mT.contiguous()
        overlaps = self.factors @ neurons
        order = torch.randperm(self.size, generator=generator, device=states.device)
        for i in order.tolist():
            spin = neurons[i]
            field = (columns[i] @ overlaps) / self.size - diagonal[i] * spin
            new = sample_spins(field, beta, current=spin, generator=generator)
            overlaps.addr_(columns[i], new - spin)
            neurons[i] = new
        states.copy_(neurons.mT)

    def _field(self, spins: Tensor, diagonal: Tensor) -> Tensor:
        return (spins @ self.factors.mT) @ self.factors / self.size - diagonal * spins

    def _diagonal(self) -> Float[Tensor, "size"]:
        return self.factors.square().sum(0) / self.size

    def _check_spins(self, spins: Tensor) -> None:
        _check_size(spins, self.size)
        if spins.device.type != "meta" and not bool((spins.abs() == 1).all()):
            raise ValueError("spins: other numbers given, -1 and 1 expected")


def _couplings(factors: Tensor) -> Tensor:
    return (factors.mT @ factors / factors.shape[1]).fill_diagonal_(0.0)


def _normalizer(examples: Tensor, quality: float | None) -> float:
    check_entries("examples", examples, 3)
    if quality is None:
        return estimate_normalizer(examples)
    check_quality(quality)
    return dataset_normalizer(examples.shape[1], quality)


def _supervised_factors(examples: Tensor, quality: float | None) -> Tensor:
    return examples.mean(1) / _normalizer(examples, quality) ** 0.5


def _unsupervised_factors(examples: Tensor, quality: float | None) -> Tensor:
    scale = (examples.shape[1] * _normalizer(examples, quality)) ** 0.5
    return examples.flatten(0, 1) / scale


def _check_size(spins: Tensor, size: int) -> None:
    if spins.ndim < 1 or spins.shape[-1] != size:
        raise ValueError(f"spins: shape {tuple(spins.shape)} given, (..., {size}) expected")
