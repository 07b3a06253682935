"""The network of the grokking studies: an MLP without biases on two one-hot symbols.

    logits = W₃ relu(W₂ relu(W₁ [onehot(a); onehot(b)]))

"Grokking at the Edge of Numerical Stability" (Prieto et al., ICLR 2025, arXiv 2501.04697).
A product with one-hot vectors picks rows, so W₁ is stored transposed, a row a symbol, and read by
index: of the 2p products of each example, 2p - 2 are with zero.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Weights = tuple[Tensor, Tensor, Tensor]
"""(..., 2p, hidden), (..., hidden, hidden), (..., hidden, p): inputs first, unlike `nn.Linear`."""


def pair_logits(
    weights: Weights, pairs: Int[Tensor, "models batch 2"]
) -> Float[Tensor, "models batch symbols"]:
    """Logits of several models at once, each with weights and pairs of its own.

    Example:
        >>> weights = torch.randn(5, 14, 8), torch.randn(5, 8, 8), torch.randn(5, 8, 7)
        >>> pair_logits(weights, torch.randint(7, (5, 20, 2))).shape
        torch.Size([5, 20, 7])
    """
    first, second, third = weights
    models, rows, hidden = first.shape
    table = first.reshape(models * rows, hidden)
    start = torch.arange(0, models * rows, rows, device=pairs.device)[:, None]
    left, right = pairs[..., 0] + start, pairs[..., 1] + (start + rows // 2)
    x = table.index_select(0, left.flatten())
    x = x.add_(table.index_select(0, right.flatten())).relu_()
    x = torch.bmm(x.view(models, -1, hidden), second).relu_()
    return torch.bmm(x, third)


class PairMLP(nn.Module):
    """One such network, with the initialisation of `nn.Linear`.

    Args:
        symbols: p; operands and results are 0 to p - 1.
        hidden: width of both hidden layers.

    Example:
        >>> PairMLP(7, 16)(torch.randint(7, (20, 2))).shape
        torch.Size([20, 7])
    """

    def __init__(self, symbols: int, hidden: int) -> None:
        super().__init__()
        for name, size in {"symbols": symbols, "hidden": hidden}.items():
            if size < 1:
                raise ValueError(f"{name}: {size} given, a positive number expected")
        self.first = _weight(2 * symbols, hidden)
        self.second = _weight(hidden, hidden)
        self.third = _weight(hidden, symbols)

    @property
    def weights(self) -> Weights:
        return self.first, self.second, self.third

    def forward(self, pairs: Int[Tensor, "batch 2"]) -> Float[Tensor, "batch symbols"]:
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise ValueError(f"pairs: shape {tuple(pairs.shape)} given, (batch, 2) expected")
        first, second, third = self.weights
        return pair_logits((first[None], second[None], third[None]), pairs[None])[0]


def _weight(inputs: int, outputs: int) -> nn.Parameter:
    linear = nn.Linear(inputs, outputs, bias=False)
    return nn.Parameter(linear.weight.detach().T.contiguous())
