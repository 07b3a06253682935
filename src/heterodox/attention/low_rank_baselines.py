"""Softmax attention approximated in linear time: what softmax-free attention is compared with.

    Nyström     softmax(Q K_mᵀ) softmax(Q_m K_mᵀ)⁺ softmax(Q_m Kᵀ) V,   Q_m, K_m: means of patches
    Linformer   softmax(Q (E K)ᵀ) F V,                                  E, F: learned, m x n
    Performer   φ(Q) (φ(K)ᵀ V) / φ(Q) φ(K)ᵀ 1,     φ(x) = exp(W x - |x|² / 2), W: random, fixed

Xiong et al., 2021, arXiv 2102.03902; Wang et al., 2020, arXiv 2006.04768; Choromanski et al., 2020,
arXiv 2009.14794. Products are divided by √d in all of them. They share projections and call with
`SoftmaxFreeAttention`, and have no local term.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from heterodox.attention.arguments import check_heads, check_layer_input

# Added to the Performer's features, as in its authors' code, so that no row sums to 0.
FEATURE_FLOOR = 1e-4


def nystrom_attention(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    value: Float[Tensor, "batch heads length value_dim"],
    query_landmarks: Float[Tensor, "batch heads tokens head_dim"],
    key_landmarks: Float[Tensor, "batch heads tokens head_dim"],
    *,
    iterations: int = 6,
) -> Float[Tensor, "batch heads length value_dim"]:
    """Nyström's approximation; the pseudo-inverse by 6 iterations of third order, as in the paper.

    Example:
        >>> x = torch.randn(1, 2, 8, 4)
        >>> landmarks = x.unflatten(2, (4, 2)).mean(3)
        >>> nystrom_attention(x, x, x, landmarks, landmarks).shape
        torch.Size([1, 2, 8, 4])
    """
    scale = query.shape[-1] ** -0.5
    left = torch.softmax(scale * query @ key_landmarks.mT, dim=-1)
    middle = torch.softmax(scale * query_landmarks @ key_landmarks.mT, dim=-1)
    right = F.scaled_dot_product_attention(query_landmarks, key, value)
    eye = torch.eye(middle.shape[-1], dtype=middle.dtype, device=middle.device)
    # Rows sum to 1; the largest column sum of each matrix is that of its own item and head.
    inverse = middle.mT / middle.sum(-2).amax(-1)[..., None, None]
    for _ in range(iterations):
        product = middle @ inverse
        inner = 15 * eye - product @ (7 * eye - product)
        inverse = 0.25 * inverse @ (13 * eye - product @ inner)
    return left @ (inverse @ right)


def performer_attention(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    value: Float[Tensor, "batch heads length value_dim"],
    features: Float[Tensor, "features head_dim"],
) -> Float[Tensor, "batch heads length value_dim"]:
    """FAVOR+ with positive features; `features` are the rows of W.

    Example:
        >>> x = torch.randn(1, 2, 8, 4)
        >>> performer_attention(x, x, x, orthogonal_features(16, 4)).shape
        torch.Size([1, 2, 8, 4])
    """

    def exponents(x: Tensor) -> Tensor:
        x = x * x.shape[-1] ** -0.25
        return x @ features.mT - x.square().sum(-1, keepdim=True) / 2

    # What is subtracted cancels: one number for each query, and one for all keys of a head.
    queries, keys = exponents(query), exponents(key)
    queries = (queries - queries.amax(-1, keepdim=True)).exp() + FEATURE_FLOOR
    keys = (keys - keys.amax((-2, -1), keepdim=True)).exp() + FEATURE_FLOOR
    return queries @ (keys.mT @ value) / (queries @ keys.sum(-2)[..., None])


def orthogonal_features(number: int, dim: int) -> Float[Tensor, "number dim"]:
    """Rows with the lengths of normal vectors, orthogonal in blocks of `dim`.

    Example:
        >>> rows = orthogonal_features(8, 4)[:4]
        >>> gram = rows @ rows.mT
        >>> torch.allclose(gram, gram.diagonal().diag(), atol=1e-5)
        True
    """
    blocks = -(-number // dim)
    directions, triangle = torch.linalg.qr(torch.randn(blocks, dim, dim))
    # Without the signs, the first coordinate would always be negative.
    directions = directions * triangle.diagonal(dim1=1, dim2=2).sign()[:, None]
    lengths = torch.randn(blocks * dim, dim).norm(dim=-1, keepdim=True)
    return (lengths * directions.mT.reshape(blocks * dim, dim))[:number]


class SoftmaxMix(nn.Module):
    """Softmax attention itself, in the call of its approximations."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, height: int, width: int) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


class NystromMix(nn.Module):
    """`nystrom_attention` whose landmarks are means of `ratio` x `ratio` patches of the grid."""

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, query: Tensor, key: Tensor, value: Tensor, height: int, width: int) -> Tensor:
        landmarks = (self.patch_means(x, height, width) for x in (query, key))
        return nystrom_attention(query, key, value, *landmarks)

    def patch_means(self, x: Tensor, height: int, width: int) -> Tensor:
        rows, columns = height // self.ratio, width // self.ratio
        patches = x.unflatten(2, (rows, self.ratio, columns, self.ratio))
        return patches.mean((3, 5)).flatten(2, 3)


class LinformerMix(nn.Module):
    """Linformer's attention from `length` to `tokens` keys, the same projections for all heads."""

    def __init__(self, length: int, tokens: int) -> None:
        super().__init__()
        self.keys = nn.Linear(length, tokens, bias=False)
        self.values = nn.Linear(length, tokens, bias=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, height: int, width: int) -> Tensor:
        return F.scaled_dot_product_attention(query, self.keys(key.mT).mT, self.values(value.mT).mT)


class PerformerMix(nn.Module):
    """`performer_attention` with random features that are drawn once."""

    features: Tensor

    def __init__(self, head_dim: int, number: int = 64) -> None:
        super().__init__()
        self.register_buffer("features", orthogonal_features(number, head_dim))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, height: int, width: int) -> Tensor:
        return performer_attention(query, key, value, self.features)


class MixedAttention(nn.Module):
    """Multi-head attention on a grid: projections around one of the mixes above.

    Args:
        embed_dim, num_heads: as for `SoftmaxFreeAttention`.
        mix: called as `mix(query, key, value, height, width)`.

    Raises:
        ValueError: `embed_dim` is no multiple of `num_heads`.

    Example:
        >>> layer = MixedAttention(32, 2, NystromMix(ratio=2))
        >>> layer(torch.randn(3, 24, 32), height=4, width=6).shape
        torch.Size([3, 24, 32])
    """

    def __init__(self, embed_dim: int, num_heads: int, mix: nn.Module) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.mix = mix
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self, x: Float[Tensor, "batch length embed_dim"], height: int, width: int
    ) -> Float[Tensor, "batch length embed_dim"]:
        check_layer_input(x, self.qkv)
        query, key, value = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        output = self.mix(query, key, value, height, width)
        return self.proj(output.transpose(1, 2).flatten(2))
