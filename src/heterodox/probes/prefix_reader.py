"""A utility of prefixes from a model that reads piece by piece: what was read is not read again."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from heterodox.probes.continuation import Reader, evaluating, reader_of
from heterodox.probes.ngrams import check_tokens


class PrefixUtility:
    """`utility(prefix)` for the decision rules of `decoding`, with the cache of a reader.

    When each prefix extends one of the last call by a token, as in greedy decoding, beam search and
    sampling, the cache is reordered and only the last tokens are read. Otherwise, as when a depth
    first search goes back, prefixes are read from the start.

    Args:
        start: makes a reader that has read nothing; see `heterodox.probes.continuation.Reader`.
        context: what every prefix follows, at least one token.

    Raises:
        ValueError: the context is no row of token ids.

    Example:
        >>> from heterodox.probes.decoding import beam_search
        >>> successor = lambda tokens: torch.nn.functional.one_hot(tokens + 1, 9).float()
        >>> beam_search(PrefixUtility.of(successor, torch.tensor([[4]])), 2, eos=8, max_length=6)[0]
        [5, 6, 7, 8]
    """

    def __init__(self, start: Callable[[], Reader], context: Int[Tensor, "1 context"]) -> None:
        check_tokens("context", context, at_least=1)
        if len(context) != 1:
            raise ValueError(f"context: {len(context)} rows given, one expected")
        self.start = start
        self.context = context.long()
        self._reader: Reader | None = None
        self._read: Tensor | None = None

    @classmethod
    def of(cls, model: Callable[..., Any], context: Int[Tensor, "1 context"]) -> "PrefixUtility":
        """Of a causal model as `heterodox.probes.generation.greedy` takes it, in eval mode."""
        return cls(lambda: _Evaluating(model), context)

    def __call__(self, prefix: Int[Tensor, "batch t"]) -> Float[Tensor, "batch vocabulary"]:
        prefix = prefix.to(self.context.device)
        rows = self._parents(prefix)
        if rows is None:
            self._reader = self.start()
            unread = torch.cat((self.context.expand(len(prefix), -1), prefix), dim=1)
        else:
            assert self._reader is not None
            self._reader.reorder(rows)
            unread = prefix[:, -1:]
        self._read = prefix
        return self._reader.next_logits(unread)

    def _parents(self, prefix: Int[Tensor, "batch t"]) -> Int[Tensor, "batch"] | None:
        """For each prefix the row of the last call that it extends by a token, if all have one."""
        if self._read is None or prefix.shape[1] != self._read.shape[1] + 1:
            return None
        same = (prefix[:, None, :-1] == self._read).all(-1)
        return same.int().argmax(1) if bool(same.any(1).all()) else None


class _Evaluating:
    """A model's reader, in evaluation mode and without gradients while it reads."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.reader = reader_of(model)

    @torch.no_grad()
    def next_logits(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch vocabulary"]:
        with evaluating(self.model):
            return self.reader.next_logits(tokens)

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        self.reader.reorder(rows)
