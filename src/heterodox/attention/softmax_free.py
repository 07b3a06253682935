"""Softmax-free attention (SOFT): a Gaussian kernel, factored through a few bottleneck tokens.

    O = P (A + ε I)⁻¹ Pᵀ V                                     (SOFT)
    O = P D^(-1/2) (A + ε I)⁻¹ D^(-1/2) Pᵀ V,   D = diag(A 1)  (SOFT++)
    P_ij = exp(-|q_i - t_j|² / 2),   A_ij = exp(-|t_i - t_j|² / 2)

with queries q that are also the keys, and m tokens t made from them. Lu, Zhang, Zhu, Feng, Xiang,
Zhang, "Softmax-free Linear Transformers", IJCV 2024, arXiv 2207.03341 (first version: arXiv
2110.11945). The ridge ε is that of the authors' code, as are the scaling by d^(-1/4), the making of
the bottleneck tokens and the local term. Time O(n m (d + d_v) + T m³) for T Newton steps, memory
O(n (m + d + d_v)): no n x n matrix is formed.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import Function

from heterodox.attention.arguments import check_heads, check_layer_input
from heterodox.autocast import without_autocast

INVERSES = ("newton", "cholesky")

# Newton's first guess is this much below the largest that converges, against rounding.
SAFETY = 0.9
# A ridge that is not small beside the matrix takes its part of the norm, with this much to spare.
RIDGE_SHARE = 0.95


def gaussian_kernel(
    query: Float[Tensor, "*batch queries head_dim"], key: Float[Tensor, "*batch keys head_dim"]
) -> Float[Tensor, "*batch queries keys"]:
    """exp(-|q - k|² / 2) of every query with every key, in [0, 1]. Nothing is scaled.

    Only the result is kept for the backward pass. Half precision is computed in float32.

    Raises:
        ValueError: there is no axis of tokens, or shapes disagree.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> gaussian_kernel(x, x)
        tensor([[1.0000, 0.3679],
                [0.3679, 1.0000]])
    """
    if query.ndim < 2:
        raise ValueError(f"query: shape {tuple(query.shape)} given, (..., queries, dim) expected")
    if key.ndim != query.ndim or (*key.shape[:-2], key.shape[-1]) != (
        *query.shape[:-2],
        query.shape[-1],
    ):
        expected = (*query.shape[:-2], "keys", query.shape[-1])
        raise ValueError(f"key: shape {tuple(key.shape)} given, {expected} expected")
    *batch, rows, dim = query.shape
    size, columns = math.prod(batch), key.shape[-2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    with without_autocast(query.device.type):
        kernel = _GaussianKernel.apply(
            query.reshape(size, rows, dim).to(dtype), key.reshape(size, columns, dim).to(dtype)
        )
    return kernel.reshape(*batch, rows, columns).to(query.dtype)


class _GaussianKernel(Function):
    """The kernel on three axes. Its gradient needs the kernel itself and no distances."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor) -> Tensor:
        # -|q - k|² / 2 = q·k - |q|² / 2 - |k|² / 2, all of it in the memory of the result.
        norms = query.square().sum(-1, keepdim=True).mul_(-0.5)
        kernel = torch.add(norms, key.square().sum(-1)[:, None], alpha=-0.5)
        kernel.baddbmm_(query, key.mT)
        kernel.clamp_(max=0).exp_()  # rounding may have made the distance of near points negative
        ctx.save_for_backward(query, key, kernel)
        return kernel

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        query, key, kernel = ctx.saved_tensors
        g = gradients[0] * kernel
        return (
            torch.baddbmm(query * g.sum(-1, keepdim=True), g, key, beta=-1),
            torch.baddbmm(key * g.sum(-2)[..., None], g.mT, query, beta=-1),
        )


def newton_inverse(
    matrix: Float[Tensor, "*batch size size"], iterations: int = 20, ridge: float = 0.01
) -> Float[Tensor, "*batch size size"]:
    """(A + ridge I)⁻¹ by Newton's iteration Y <- 2 Y - Y (A + ridge I) Y, for each matrix alone.

    The backward pass is the closed form ∂L/∂A = -Yᵀ (∂L/∂Y) Yᵀ of the exact inverse, once: the
    iterations are neither stored nor repeated. It is the true gradient where they have converged.
    In the direction of an eigenvalue λ the relative error is (1 - 1.8 λ² / |A|²)^(2^iterations), so
    that 20 steps suffice up to a condition number of about 300.

    Args:
        matrix: A, invertible once the ridge is added.
        iterations: T; 20 in the paper.
        ridge: added to the diagonal; 0.01 in the authors' code.

    Raises:
        ValueError: the matrix is not square or is empty, `iterations` is below 1, or `ridge` is
            negative.

    Example:
        >>> newton_inverse(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), ridge=0.0)
        tensor([[ 0.6667, -0.3333],
                [-0.3333,  0.6667]])
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
        raise ValueError(
            f"matrix: shape {tuple(matrix.shape)} given, (..., size, size) of at least 1 expected"
        )
    _check_inverse(iterations, ridge)
    flat = matrix.reshape(math.prod(matrix.shape[:-2]), *matrix.shape[-2:])
    flat = flat.to(torch.promote_types(matrix.dtype, torch.float32))
    with without_autocast(matrix.device.type):
        inverse = _NewtonInverse.apply(flat, iterations, ridge)
    return inverse.reshape(matrix.shape).to(matrix.dtype)


class _NewtonInverse(Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, iterations: int, ridge: float) -> Tensor:
        inverse = _newton_iterations(matrix, iterations, ridge)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return -(inverse.mT @ gradients[0] @ inverse.mT), None, None


def _newton_iterations(matrix: Tensor, iterations: int, ridge: float) -> Tensor:
    ridged = matrix + ridge * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    # For a symmetric matrix, whose rows are its columns, the square of the largest row sum.
    rows, columns = (matrix.abs().sum(axis).amax(-1)[:, None, None] for axis in (-1, -2))
    bound = torch.maximum(rows * columns, RIDGE_SHARE * (rows + ridge) * (columns + ridge))
    inverse = (ridged.mT * (SAFETY * 2 / bound)).contiguous()
    product, spare = torch.empty_like(ridged), torch.empty_like(ridged)
    for _ in range(iterations):
        torch.bmm(inverse, ridged, out=product)
        torch.baddbmm(inverse, product, inverse, beta=2, alpha=-1, out=spare)
        inverse, spare = spare, inverse
    return inverse


def softmax_free_attention(
    query: Float[Tensor, "batch heads length head_dim"],
    value: Float[Tensor, "batch heads length value_dim"],
    bottleneck: Float[Tensor, "batch heads tokens head_dim"],
    *,
    iterations: int = 20,
    ridge: float = 0.01,
    normalize: bool = False,
    inverse: str = "newton",
) -> Float[Tensor, "batch heads length value_dim"]:
    """Softmax-free attention, SOFT or SOFT++, multiplied from right to left.

    Nothing is scaled: where products of softmax attention are divided by √d, both `query` and
    `bottleneck` are divided by d^(1/4) before. Half precision is computed in float32. The rows of
    the attention map do not sum to 1, and of SOFT they grow with the number of tokens.

    Args:
        query: also the keys.
        value: what is mixed.
        bottleneck: the tokens t. With the queries themselves, and no ridge, attention is the full
            Gaussian kernel times the values.
        iterations: Newton steps; 20 in the paper. Not used by "cholesky".
        ridge: added to the diagonal of A; 0.01 in the authors' code.
        normalize: SOFT++, whose map keeps its spectral norm as the number of tokens grows.
        inverse: "newton", as in the paper, or "cholesky", which solves exactly.

    Raises:
        ValueError: shapes, dtypes or devices disagree, there is no bottleneck token, `iterations`
            is below 1, `ridge` is negative, or `inverse` is something else.

    Example:
        >>> query, value = torch.randn(2, 4, 64, 8), torch.randn(2, 4, 64, 8)
        >>> bottleneck = query.unflatten(2, (16, 4)).mean(3)
        >>> softmax_free_attention(query, value, bottleneck, normalize=True).shape
        torch.Size([2, 4, 64, 8])
    """
    _check_attention(query, value, bottleneck)
    _check_inverse(iterations, ridge)
    _check_name(inverse)
    dtype = torch.promote_types(query.dtype, torch.float32)
    with without_autocast(query.device.type):
        query, mixed, bottleneck = query.to(dtype), value.to(dtype), bottleneck.to(dtype)
        to_tokens = gaussian_kernel(query, bottleneck)
        among_tokens = gaussian_kernel(bottleneck, bottleneck)
        mixed = to_tokens.mT @ mixed
        root = among_tokens.sum(-1, keepdim=True).rsqrt() if normalize else None
        mixed = mixed if root is None else root * mixed
        if inverse == "newton":
            mixed = newton_inverse(among_tokens, iterations, ridge) @ mixed
        else:
            eye = torch.eye(bottleneck.shape[2], dtype=dtype, device=query.device)
            mixed = torch.cholesky_solve(mixed, torch.linalg.cholesky(among_tokens + ridge * eye))
        mixed = mixed if root is None else root * mixed
        return (to_tokens @ mixed).to(value.dtype)


def _check_attention(query: Tensor, value: Tensor, bottleneck: Tensor) -> None:
    if query.ndim != 4:
        raise ValueError(
            f"query: shape {tuple(query.shape)} given, (batch, heads, length, head_dim) expected"
        )
    batch, heads, length, head_dim = query.shape
    if value.ndim != 4 or value.shape[:3] != query.shape[:3]:
        raise ValueError(
            f"value: shape {tuple(value.shape)} given, ({batch}, {heads}, {length}, value_dim) "
            "expected"
        )
    tokens = bottleneck.shape[2] if bottleneck.ndim == 4 else 0
    if tokens < 1 or bottleneck.shape != (batch, heads, tokens, head_dim):
        raise ValueError(
            f"bottleneck: shape {tuple(bottleneck.shape)} given, ({batch}, {heads}, tokens, "
            f"{head_dim}) of at least one token expected"
        )
    for name, tensor in (("value", value), ("bottleneck", bottleneck)):
        if (tensor.dtype, tensor.device) != (query.dtype, query.device):
            raise ValueError(
                f"{name}: {tensor.dtype} on {tensor.device} given, query's {query.dtype} on "
                f"{query.device} expected"
            )


def _check_inverse(iterations: int, ridge: float) -> None:
    if iterations < 1:
        raise ValueError(f"iterations: {iterations} given, a positive number expected")
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge: {ridge} given, a number that is not negative expected")


def _check_name(inverse: str) -> None:
    if inverse not in INVERSES:
        raise ValueError(f"inverse: {inverse!r} given, one of {', '.join(INVERSES)} expected")


class SoftmaxFreeAttention(nn.Module):
    """Multi-head `softmax_free_attention` on a grid of tokens, with its projections.

    One projection gives the queries, which are the keys too, divided by d^(1/4). A convolution that
    all heads share, with kernel and stride `ratio`, then LayerNorm and GELU, make of them one
    bottleneck token for each `ratio` x `ratio` patch of the grid. Neither causal nor masked
    attention exists: a bottleneck token has seen its whole patch.

    Args:
        embed_dim: channels of input and output, a multiple of `num_heads`.
        num_heads: number of heads, each of embed_dim / num_heads channels.
        ratio: side of a patch. The inverse costs (height · width / ratio²)³, so that 1 is for small
            grids only.
        conv_size: side of the local term, a depthwise convolution of the values that is added to
            the output, with one filter for each head; odd, and 0 for none. 9, 5 and 3 in the
            paper's first three stages.
        iterations, ridge, normalize, inverse: see `softmax_free_attention`.

    Raises:
        ValueError: `embed_dim` is no multiple of `num_heads`, `ratio` is below 1, `conv_size` is
            even or negative, or as for `softmax_free_attention`.

    Example:
        >>> layer = SoftmaxFreeAttention(64, num_heads=2, ratio=4, conv_size=5)
        >>> layer(torch.randn(3, 96, 64), height=8, width=12).shape
        torch.Size([3, 96, 64])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ratio: int,
        *,
        conv_size: int = 0,
        iterations: int = 20,
        ridge: float = 0.01,
        normalize: bool = False,
        inverse: str = "newton",
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads)
        if ratio < 1:
            raise ValueError(f"ratio: {ratio} given, a positive number expected")
        if conv_size and (conv_size < 0 or conv_size % 2 == 0):
            raise ValueError(f"conv_size: {conv_size} given, an odd number or 0 expected")
        _check_inverse(iterations, ridge)
        _check_name(inverse)
        head_dim = embed_dim // num_heads
        self.num_heads = num_heads
        self.ratio = ratio
        self.iterations = iterations
        self.ridge = ridge
        self.normalize = normalize
        self.inverse = inverse
        self.query = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.bottleneck = nn.Conv2d(head_dim, head_dim, ratio, stride=ratio, bias=False)
        self.bottleneck_norm = nn.LayerNorm(head_dim)
        self.local = (
            nn.Conv2d(
                num_heads,
                num_heads,
                conv_size,
                padding=conv_size // 2,
                groups=num_heads,
                bias=False,
            )
            if conv_size
            else None
        )
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self, x: Float[Tensor, "batch length embed_dim"], height: int, width: int
    ) -> Float[Tensor, "batch length embed_dim"]:
        """Tokens of a grid in reading order.

        Raises:
            ValueError: `height` times `width` is not the length, or `ratio` does not divide them.
        """
        check_layer_input(x, self.query)
        self._check_grid(x.shape[1], height, width)
        query = self.scaled_queries(x)
        value = self.value(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        output = softmax_free_attention(
            query,
            value,
            self.bottleneck_tokens(query, height, width),
            iterations=self.iterations,
            ridge=self.ridge,
            normalize=self.normalize,
            inverse=self.inverse,
        )
        if self.local is not None:
            output = output + self._local_term(value, height, width)
        return self.proj(output.transpose(1, 2).flatten(2))

    def scaled_queries(
        self, x: Float[Tensor, "batch length embed_dim"]
    ) -> Float[Tensor, "batch heads length head_dim"]:
        """The queries, which are the keys too, divided by d^(1/4)."""
        query = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        # One copy that serves all that follows: head by head, and for a convolution channels last.
        return (query * query.shape[-1] ** -0.25).contiguous()

    def bottleneck_tokens(
        self, query: Float[Tensor, "batch heads length head_dim"], height: int, width: int
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """The tokens t of a grid of scaled queries."""
        batch, heads, _, head_dim = query.shape
        grid = query.reshape(batch * heads, height, width, head_dim).permute(0, 3, 1, 2)
        tokens = self.bottleneck(grid).flatten(2).mT
        return F.gelu(self.bottleneck_norm(tokens)).unflatten(0, (batch, heads))

    def _local_term(self, value: Tensor, height: int, width: int) -> Tensor:
        assert self.local is not None
        batch, heads, _, head_dim = value.shape
        # Channels of a head stand in the batch: they share the filter of their head.
        grid = value.permute(0, 3, 1, 2).reshape(batch * head_dim, heads, height, width)
        return self.local(grid).flatten(2).unflatten(0, (batch, head_dim)).permute(0, 2, 3, 1)

    def _check_grid(self, length: int, height: int, width: int) -> None:
        for name, side in (("height", height), ("width", width)):
            if side < 1 or side % self.ratio:
                raise ValueError(
                    f"{name}: {side} given, a positive multiple of ratio = {self.ratio} expected"
                )
        if height * width != length:
            raise ValueError(
                f"height: {height} and width {width} given, a product of {length}, the length of "
                "x, expected"
            )

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, ratio={self.ratio}, iterations={self.iterations}, "
            f"ridge={self.ridge:g}, normalize={self.normalize}, inverse={self.inverse!r}"
        )
