"""Hugging Face Transformers: a model as the utility that decision rules decode.

utility = model_utility(model, tokenizer("...", return_tensors="pt").input_ids)
sequence, score = beam_search(utility, 5, eos=tokenizer.eos_token_id, max_length=100)
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from heterodox.probes.continuation import HuggingFaceReader, evaluating
from heterodox.probes.prefix_reader import PrefixUtility


def model_utility(
    model: nn.Module,
    input_ids: Int[Tensor, "1 length"],
    attention_mask: Int[Tensor, "1 length"] | None = None,
) -> PrefixUtility:
    """`utility(prefix)`: the logits of a Hugging Face model for what follows `input_ids`.

    The cache of keys and values is kept and reordered from call to call where prefixes grow by a
    token, so that beam search and sampling read each token once; see `PrefixUtility`. The source of
    an encoder-decoder model is encoded once. Put the model in evaluation mode.

    Args:
        model: a causal model, or an encoder-decoder model with `decoder_start_token_id`.
        input_ids: the context of a causal model, the source of an encoder-decoder model.
        attention_mask: of the source; not for causal models, whose one context needs no padding.

    Raises:
        ValueError: `input_ids` is not one row of token ids; `attention_mask` is given for a causal
            model; or an encoder-decoder model has no token to start with.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from heterodox.probes.decoding import beam_search
        >>> config = GPT2Config(vocab_size=9, n_positions=32, n_embd=8, n_layer=1, n_head=1,
        ...                     bos_token_id=None, eos_token_id=None)
        >>> utility = model_utility(GPT2LMHeadModel(config).eval(), torch.tensor([[1, 2]]))
        >>> sequence, log_probability = beam_search(utility, 3, eos=None, max_length=5)
        >>> len(sequence), log_probability < 0
        (5, True)
    """
    config: Any = model.config
    if not getattr(config, "is_encoder_decoder", False):
        if attention_mask is not None:
            raise ValueError("attention_mask: given for a causal model, None expected")
        return PrefixUtility.of(model, input_ids)
    if input_ids.ndim != 2 or len(input_ids) != 1 or input_ids.is_floating_point():
        raise ValueError(
            f"input_ids: shape {tuple(input_ids.shape)} of {input_ids.dtype} given, one row of "
            "token ids expected"
        )
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise ValueError("model: no decoder_start_token_id given, one expected in its config")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    whole: Any = model
    with torch.no_grad(), evaluating(model):
        encoded = whole.get_encoder()(input_ids, attention_mask=mask)[0]
    return PrefixUtility(
        lambda: _DecoderReader(model, encoded, mask), input_ids.new_full((1, 1), start)
    )


class _DecoderReader(HuggingFaceReader):
    """The decoder of an encoder-decoder model, with the encoded source once for each row."""

    def __init__(self, model: nn.Module, encoded: Tensor, mask: Tensor) -> None:
        super().__init__(model, name="decoder_input_ids")
        self.encoded, self.mask = encoded, mask

    @torch.no_grad()
    def next_logits(self, tokens: Int[Tensor, "batch length"]) -> Tensor:
        rows = len(tokens)
        self.inputs = {
            "encoder_outputs": (self.encoded.expand(rows, -1, -1),),
            "attention_mask": self.mask.expand(rows, -1),
        }
        with evaluating(self.model):
            return super().next_logits(tokens)
