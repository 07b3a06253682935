"""A monotonic transducer: writes a target while it moves through its source, one mark at a time.

    h_t = GRU(h_t−1, [e(y_t−1), m_a(t)]),   a(t) = how many of y_<t use up a symbol of the source

m is the source, embedded and convolved; hard monotonic attention (Aharoni and Goldberg, 2017, arXiv
1611.01487) whose alignment is known from the output, so that nothing has to be searched in
training.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class MonotonicTransducer(nn.Module):
    """From a source and the start of a target to the utility of each next target token.

    Args:
        uses_source: for each token of the target whether it uses up a symbol of the source.
        width: of embeddings and source.
        hidden: of the GRU.
        reach: symbols of the source on each side that a source position sees in each of two layers.

    Source and target share their tokens; where a source ends, its rows are padded with token 0,
    which also starts targets.

    Example:
        >>> model = MonotonicTransducer(torch.tensor([False, True, True, False]), 8, 8)
        >>> source, target = torch.tensor([[1, 2, 0]]), torch.tensor([[0, 1, 3, 2]])
        >>> model(source, target).shape
        torch.Size([1, 4, 4])
    """

    uses_source: Tensor

    def __init__(
        self, uses_source: Bool[Tensor, "vocabulary"], width: int, hidden: int, reach: int = 3
    ) -> None:
        super().__init__()
        vocabulary = len(uses_source)
        self.register_buffer("uses_source", uses_source)
        self.source_embedding = nn.Embedding(vocabulary, width)
        self.embedding = nn.Embedding(vocabulary, width)
        self.near = nn.Conv1d(width, width, 2 * reach + 1, padding=reach)
        self.far = nn.Conv1d(width, width, 2 * reach + 1, padding=reach)
        self.gru = nn.GRU(2 * width, hidden, batch_first=True)
        self.out = nn.Linear(hidden, vocabulary)

    def encode(self, source: Int[Tensor, "batch source"]) -> Float[Tensor, "batch longer width"]:
        """The source and one place after its end; what is padding does not change what is not."""
        source = F.pad(source, (0, 1))
        real = (source > 0).cumsum(1) == torch.arange(1, source.shape[1] + 1, device=source.device)
        ends = torch.cat((torch.ones_like(real[:, :1]), real[:, :-1]), dim=1)[:, None]
        x = self.source_embedding(source).transpose(1, 2) * ends
        x = (x + F.gelu(self.near(x))) * ends
        x = x + F.gelu(self.far(x))
        return x.transpose(1, 2)

    def read(
        self,
        memory: Float[Tensor, "batch longer width"],
        tokens: Int[Tensor, "batch target"],
        place: Int[Tensor, "batch"],
        state: Float[Tensor, "1 batch hidden"] | None = None,
    ) -> tuple[
        Float[Tensor, "batch target vocabulary"],
        Int[Tensor, "batch"],
        Float[Tensor, "1 batch hidden"],
    ]:
        """Utilities after each of `tokens`, and the place in the source and the state after all."""
        places = place[:, None] + self.uses_source[tokens].cumsum(1)
        at = places.clamp(max=memory.shape[1] - 1)
        seen = memory.gather(1, at[..., None].expand(-1, -1, memory.shape[2]))
        output, state = self.gru(torch.cat((self.embedding(tokens), seen), dim=-1), state)
        return self.out(output), places[:, -1], state

    def forward(
        self, source: Int[Tensor, "batch source"], tokens: Int[Tensor, "batch target"]
    ) -> Float[Tensor, "batch target vocabulary"]:
        start = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        return self.read(self.encode(source), tokens, start)[0]


class TransducerReader:
    """Reads targets of one source piece by piece; see `heterodox.probes.continuation.Reader`.

    Example:
        >>> model = MonotonicTransducer(torch.tensor([False, True, True, False]), 8, 8)
        >>> source, target = torch.tensor([[1, 2]]), torch.tensor([[0, 1, 3, 2]])
        >>> reader = TransducerReader(model, model.encode(source))
        >>> _ = reader.next_logits(target[:, :3])
        >>> expected = model(source, target)[:, -1]
        >>> torch.allclose(reader.next_logits(target[:, 3:]), expected, atol=1e-6)
        True
    """

    def __init__(self, model: MonotonicTransducer, memory: Float[Tensor, "1 longer width"]) -> None:
        self.model = model
        self.memory = memory
        self.place: Tensor | None = None
        self.state: Tensor | None = None

    @torch.no_grad()
    def next_logits(self, tokens: Int[Tensor, "batch new"]) -> Float[Tensor, "batch vocabulary"]:
        rows = len(tokens)
        place = tokens.new_zeros(rows) if self.place is None else self.place
        memory = self.memory.expand(rows, -1, -1)
        utility, self.place, self.state = self.model.read(memory, tokens, place, self.state)
        return utility[:, -1]

    def reorder(self, rows: Int[Tensor, "new_batch"]) -> None:
        if self.place is not None and self.state is not None:
            self.place, self.state = self.place[rows], self.state[:, rows].contiguous()
