"""Continuing a context token by token: greedily, or by sampling the nucleus of the distribution.

    greedy:   y_t = argmax p(· | x, y_<t)
    nucleus:  the smallest set of most probable tokens whose mass reaches p; sampled, renormalised

Greedy decoding is what repeats itself and what hyperfitting cures (Carlsson et al., arXiv
2412.04318); nucleus sampling (Holtzman et al., "The Curious Case of Neural Text Degeneration",
arXiv 1904.09751) is the usual cure. Models with a cache of keys and values read each token once.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from heterodox.probes.diversity import check_logits
from heterodox.probes.ngrams import check_tokens, forbid

Processor = Callable[[Tensor, Tensor], Tensor]
"""`(tokens so far (batch, length), logits (batch, vocabulary)) -> logits`, as in Hugging Face."""


@runtime_checkable
class Reader(Protocol):
    """Reads sequences piece by piece."""

    def next_logits(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch vocabulary"]:
        """Reads the tokens that come next; logits after the last of them."""
        ...

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        """Row i becomes what row `rows[i]` has read."""
        ...


def greedy(
    model: Callable[..., Any],
    context: Int[Tensor, "batch context"],
    length: int,
    processors: Sequence[Processor] = (),
) -> Int[Tensor, "batch length"]:
    """Continues each context by its most probable token, of several the one with the lowest id.

    The model is called in evaluation mode and without gradients; see `reader_of` for how.

    Args:
        model: from tokens (batch, length) to logits (batch, length, vocabulary), or to an object
            with `.logits`.
        context: at least one token a row.
        length: how many tokens are added.
        processors: change the logits before each choice, in this order; see `Processor`.

    Returns:
        The continuation, without the context.

    Raises:
        ValueError: the context is empty or not integers, `length` is negative, or the model gives
            logits that are no numbers.

    Example:
        >>> successor = lambda tokens: torch.nn.functional.one_hot(tokens + 1, 10).float()
        >>> greedy(successor, torch.tensor([[3], [5]]), 3)
        tensor([[4, 5, 6],
                [6, 7, 8]])
    """
    return _continue(model, context, length, processors, lambda logits: logits.argmax(-1))


def sample(
    model: Callable[..., Any],
    context: Int[Tensor, "batch context"],
    length: int,
    top_p: float = 0.9,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    processors: Sequence[Processor] = (),
) -> Int[Tensor, "batch length"]:
    """Continues each context by tokens drawn from the nucleus of the model's distribution.

    Args:
        model, context, length, processors: as for `greedy`.
        top_p: mass of the nucleus, in [0, 1]; 0.9 in the hyperfitting paper. 1 is plain sampling.
        temperature: what logits are divided by, positive; before the nucleus is taken.
        generator: where the numbers come from; None: one that starts from seed 0, so that two calls
            give the same. It may be on another device than the model.

    Raises:
        ValueError: as for `greedy`, or `top_p` or `temperature` is out of range.

    Example:
        >>> successor = lambda tokens: 9.0 * torch.nn.functional.one_hot(tokens + 1, 10)
        >>> sample(successor, torch.tensor([[3]]), 3, top_p=0.5)
        tensor([[4, 5, 6]])
    """
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p: {top_p} given, a number in [0, 1] expected")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: {temperature} given, a positive number expected")
    source = torch.Generator().manual_seed(0) if generator is None else generator

    def draw(logits: Float[Tensor, "batch vocabulary"]) -> Int[Tensor, "batch"]:
        return draw_from_nucleus(logits / temperature, top_p, source)

    return _continue(model, context, length, processors, draw)


def nucleus_mask(
    logits: Float[Tensor, "*batch vocabulary"], p: float
) -> Bool[Tensor, "*batch vocabulary"]:
    """The tokens of the nucleus: the most probable ones, the one that crosses p included.

    Of equally probable tokens those with lower ids come first. A token of −inf is never kept.

    Args:
        p: mass that the nucleus reaches, in [0, 1]. 1 keeps every token, 0 the most probable one.

    Raises:
        ValueError: `p` is out of range; logits are integers; or a row has NaN, +inf or nothing but
            −inf.

    Example:
        >>> nucleus_mask(torch.tensor([0.2, 0.5, 0.3]).log(), 0.6)
        tensor([False,  True,  True])
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p: {p} given, a number in [0, 1] expected")
    check_logits("logits", logits)
    return _nucleus(logits, p)


def _nucleus(
    logits: Float[Tensor, "*batch vocabulary"], p: float
) -> Bool[Tensor, "*batch vocabulary"]:
    possible = logits > -torch.inf
    if p == 1:  # a sum that rounds to 1 early must not cut the tail
        return possible
    # float32: in bfloat16 a sum stops to grow long before it is 1.
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    probability, order = exact.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = probability.cumsum(-1) - probability
    keep = before < p
    keep[..., 0] = True
    return torch.zeros_like(possible).scatter(-1, order, keep) & possible


def draw_from_nucleus(
    logits: Float[Tensor, "batch vocabulary"], top_p: float, generator: torch.Generator
) -> Int[Tensor, "batch"]:
    """One token a row, by the inverse of the distribution function at a uniform number."""
    kept = logits.masked_fill(~_nucleus(logits, top_p), -torch.inf)
    probability, order = kept.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    uniform = torch.rand(
        len(logits), 1, generator=generator, device=generator.device, dtype=torch.float64
    ).to(logits.device)
    place = (probability.cumsum(-1) <= uniform).sum(-1, keepdim=True)
    last = (probability > 0).sum(-1, keepdim=True) - 1  # where rounding ends the sum below 1
    return order.gather(-1, torch.minimum(place, last).clamp(min=0))[:, 0]


class RepetitionPenalty:
    """Makes every token that has occurred less likely: logits / penalty above 0, · penalty below.

    Keskar et al., "CTRL", arXiv 1909.05858, section 4.1, with 1.2 as there; context included.

    Raises:
        ValueError: `penalty` is not positive.

    Example:
        >>> RepetitionPenalty(2.0)(torch.tensor([[0, 1]]), torch.tensor([[3.0, -3.0, 3.0]]))
        tensor([[ 1.5000, -6.0000,  3.0000]])
    """

    def __init__(self, penalty: float = 1.2) -> None:
        if not 0 < penalty < float("inf"):
            raise ValueError(f"penalty: {penalty} given, a positive number expected")
        self.penalty = penalty

    def __call__(
        self, tokens: Int[Tensor, "batch length"], logits: Float[Tensor, "batch vocabulary"]
    ) -> Float[Tensor, "batch vocabulary"]:
        seen = logits.gather(1, tokens.long())
        less = torch.where(seen > 0, seen / self.penalty, seen * self.penalty)
        return logits.scatter(1, tokens.long(), less)


class NoRepeatNgram:
    """Forbids every token that would complete an n-gram of the row so far, context included.

    Raises:
        ValueError: `n` is not positive.

    Example:
        >>> NoRepeatNgram(2)(torch.tensor([[4, 1, 4]]), torch.zeros(1, 5))
        tensor([[0., -inf, 0., 0., 0.]])
    """

    def __init__(self, n: int = 3) -> None:
        if n < 1:
            raise ValueError(f"n: {n} given, at least 1 expected")
        self.n = n

    def __call__(
        self, tokens: Int[Tensor, "batch length"], logits: Float[Tensor, "batch vocabulary"]
    ) -> Float[Tensor, "batch vocabulary"]:
        if tokens.shape[1] < self.n:
            return logits
        grams = tokens.long().unfold(1, self.n, 1)
        last = tokens[:, tokens.shape[1] - self.n + 1 :]
        again = (grams[..., :-1] == last[:, None]).all(-1)
        # Counting, because the same token may complete several n-grams and none.
        completes = torch.zeros(logits.shape, dtype=torch.int64, device=logits.device)
        return forbid(logits, completes.scatter_add(1, grams[..., -1], again.long()) > 0)


def reader_of(model: Any) -> Reader:
    """What reads a sequence with this model, each token once if the model has a cache.

    A model offers one by `has_cache` and `incremental()`, as `DecoderLM` does with softmax
    attention, or as Hugging Face's models do by `past_key_values`. Any other model, also one of
    theirs that returns no cache, is called with the whole sequence for every token.
    """
    if getattr(model, "has_cache", False):
        reader: Reader = model.incremental()
        return reader
    if hasattr(model, "prepare_inputs_for_generation"):
        return HuggingFaceReader(model)
    return _WholeReader(model)


class _WholeReader:
    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.tokens: Tensor | None = None

    def next_logits(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch vocabulary"]:
        self.tokens = tokens if self.tokens is None else torch.cat((self.tokens, tokens), dim=1)
        output = self.model(self.tokens)
        return getattr(output, "logits", output)[:, -1]

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        self.tokens = None if self.tokens is None else self.tokens[rows]


class HuggingFaceReader:
    """A causal model of Hugging Face, or given `inputs` an encoder-decoder model.

    Args:
        inputs: of each call besides the tokens, such as `encoder_outputs`; one row, or one a row.
        name: of the argument that the tokens are.
    """

    def __init__(
        self, model: Any, inputs: dict[str, Any] | None = None, name: str = "input_ids"
    ) -> None:
        self.model = model
        self.inputs = {} if inputs is None else inputs
        self.name = name
        # Transformers 5 calls `cache` what was `past_key_values`.
        known = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in known else "past_key_values"
        self.cache: Any = None
        self.read: Tensor | None = None  # of a model that returns no cache

    def next_logits(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch vocabulary"]:
        cache = {self.cache_name: self.cache, "use_cache": True}
        if self.read is not None:
            tokens = torch.cat((self.read, tokens), dim=1)
        output = self.model(**{self.name: tokens}, **self.inputs, **cache)
        self.cache = getattr(output, self.cache_name, None)
        self.read = tokens if self.cache is None else None
        return output.logits[:, -1]

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        if self.cache is not None:
            self.cache.reorder_cache(rows)
        if self.read is not None:
            self.read = self.read[rows]


@torch.no_grad()
def _continue(
    model: Callable[..., Any],
    context: Int[Tensor, "batch context"],
    length: int,
    processors: Sequence[Processor],
    choose: Callable[[Tensor], Tensor],
) -> Int[Tensor, "batch length"]:
    check_tokens("context", context, at_least=1)
    if length < 0:
        raise ValueError(f"length: {length} given, a number that is not negative expected")
    tokens = context.long()
    if length == 0 or len(tokens) == 0:
        return tokens.new_zeros(len(tokens), length)
    with evaluating(model):
        reader, unread = reader_of(model), tokens
        finite = torch.ones((), dtype=torch.bool, device=tokens.device)
        for _ in range(length):
            logits = reader.next_logits(unread)
            # Read at the end: to look at a number is to wait for the device.
            finite = finite & logits.amax(-1).isfinite().all()
            for process in processors:
                logits = process(tokens, logits)
            unread = choose(logits)[:, None]
            tokens = torch.cat((tokens, unread), dim=1)
    if not bool(finite):
        raise ValueError("model: logits that are NaN or infinite given, finite logits expected")
    return tokens[:, context.shape[1] :]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode inside, and for every module its own mode afterwards."""
    modes = (
        {module: module.training for module in model.modules()}
        if isinstance(model, nn.Module)
        else {}
    )
    try:
        if modes:
            model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
