"""Generation: continuing contexts with a cache of keys and values, and reading them again."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from heterodox.bench.workload import Case, Target, Workload, check_sizes
from heterodox.models.transformer import DecoderLM
from heterodox.probes.decoding import beam_search
from heterodox.probes.generation import greedy
from heterodox.probes.prefix_reader import PrefixUtility
from heterodox.training.seeding import seeded

VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 1024, 160, 4, 4, 32
BEAM = 5


def workload() -> Workload:
    return Workload(
        facts={
            "model": "4 layers, width 160, 4 heads, 1024 tokens, random weights; for "
            "transformers-generate a GPT-2 of the same sizes",
            "context": "32 tokens",
            "beam 5": "one context after the other; for transformers-generate all at once",
            "size": "contexts x tokens that are added",
        },
        cases=cases,
        prepare=prepare,
        targets=(Target("cached", "time", "32x96", "greedy", 0.2),),
    )


def cases(sizes: Sequence[str]) -> list[Case]:
    """Greedy decoding and a beam of 5, at every size.

    Raises:
        ValueError: a size is not of the form 32x96.
    """
    check_sizes(sizes, "contexts x tokens", "32x96")
    return [Case(size, rule) for size in sizes for rule in ("greedy", f"beam {BEAM}")]


def prepare(function: Callable[..., Any], case: Case, device: str) -> Callable[[], object]:
    """A call of `function(contexts, length, beam)`; a beam of 1 is greedy decoding."""
    contexts, length = map(int, case.size.split("x"))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (contexts, CONTEXT), generator=generator).to(device)
    beam = 1 if case.passes == "greedy" else BEAM
    return lambda: function(tokens, length, beam)


@functools.cache
def decoder(device: str) -> DecoderLM:
    """Weights large enough that the model does not always say the same."""
    with seeded(0):
        model = DecoderLM(VOCABULARY, WIDTH, LAYERS, HEADS, 128, init_std=0.1)
    return model.to(device).eval()


def continued(
    model: Callable[..., Any], contexts: Int[Tensor, "batch context"], length: int, beam: int
) -> Int[Tensor, "batch length"]:
    if beam == 1:
        return greedy(model, contexts, length)
    return torch.tensor(
        [
            beam_search(PrefixUtility.of(model, context[None]), beam, None, length)[0]
            for context in contexts
        ]
    )


def cached(
    contexts: Int[Tensor, "batch context"], length: int, beam: int
) -> Int[Tensor, "batch length"]:
    return continued(decoder(str(contexts.device)), contexts, length, beam)


@torch.no_grad()
def whole_sequence(
    contexts: Int[Tensor, "batch context"], length: int, beam: int
) -> Int[Tensor, "batch length"]:
    """The same model, called with everything for every token."""
    model = decoder(str(contexts.device))
    return continued(lambda tokens: model(tokens), contexts, length, beam)


@functools.cache
def gpt2(device: str) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=512,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.1,
    )
    with seeded(0):
        model: nn.Module = GPT2LMHeadModel(config)
    return model.to(device).eval()


def transformers_generate(
    contexts: Int[Tensor, "batch context"], length: int, beam: int
) -> Int[Tensor, "batch length"]:
    model: Any = gpt2(str(contexts.device))
    tokens = model.generate(
        contexts,
        attention_mask=torch.ones_like(contexts),
        max_new_tokens=length,
        min_new_tokens=length,
        do_sample=False,
        num_beams=beam,
        pad_token_id=0,
    )
    new: Tensor = tokens[:, contexts.shape[1] :]
    return new
