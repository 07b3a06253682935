"""Byte-pair encoding: frequent strings of bytes become tokens, learned from a text.

    repeat: the most frequent pair of neighbouring tokens becomes a token

Sennrich et al., arXiv 1508.07909, on bytes as in GPT-2, by Hugging Face's `tokenizers`, which comes
with `heterodox[transformers]`. Every text can be encoded, and decoding gives it back exactly.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

BYTES = 256


@dataclass(frozen=True)
class BytePairs:
    """A learned vocabulary; see `learn_byte_pairs`.

    Attributes:
        tokenizer: the `tokenizers.Tokenizer` behind it.
    """

    tokenizer: Any

    @property
    def vocabulary_size(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str) -> Int64[Tensor, "tokens"]:
        """The tokens of a text."""
        return torch.tensor(self.tokenizer.encode(text).ids, dtype=torch.int64)

    def decode(self, tokens: Int64[Tensor, "tokens"]) -> str:
        """The text of tokens; U+FFFD where a character is cut."""
        return str(self.tokenizer.decode(tokens.tolist()))


def learn_byte_pairs(text: str, vocabulary: int = 1024) -> BytePairs:
    """Learns a byte-level vocabulary from a text; the same text gives the same one.

    Args:
        text: the training part.
        vocabulary: how many tokens at most, 256 of them single bytes.

    Raises:
        ValueError: `vocabulary` is below 256.
        ImportError: `tokenizers` is missing.

    Example:
        >>> pairs = learn_byte_pairs("low lower lowest " * 9, vocabulary=260)
        >>> tokens = pairs.encode("lowest — ever")
        >>> len(tokens) < len("lowest — ever".encode()), pairs.decode(tokens)
        (True, 'lowest — ever')
    """
    if vocabulary < BYTES:
        raise ValueError(f"vocabulary: {vocabulary} given, at least {BYTES} expected")
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ImportError(
            'tokenizers: not found, expected; pip install "heterodox[transformers]"'
        ) from error
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([text], trainer)
    return BytePairs(tokenizer)
