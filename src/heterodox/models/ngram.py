"""The n-gram network: features of the next word from the embeddings of the words before it.

    features = tanh(W [e(w_1); ...; e(w_n)] + b)

Bengio et al., "A Neural Probabilistic Language Model", JMLR 2003, without its output layer and
without connections past the hidden layer.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class NGramFeatures(nn.Module):
    """The network below the output layer.

    Embeddings have sparse gradients, so that a training step of `torch.optim.SGD` does not get
    slower with the vocabulary.

    Args:
        vocabulary: number of words.
        context: words that are read.
        embedding: width of a word's vector; they start from N(0, 1).
        hidden: width of the features.

    Raises:
        ValueError: a size is not positive.

    Example:
        >>> NGramFeatures(1000, 4, 16, 32)(torch.randint(1000, (8, 4))).shape
        torch.Size([8, 32])
    """

    def __init__(self, vocabulary: int, context: int, embedding: int, hidden: int) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "context": context}
        for name, size in {**sizes, "embedding": embedding, "hidden": hidden}.items():
            if size < 1:
                raise ValueError(f"{name}: {size} given, a positive number expected")
        self.embedding = nn.Embedding(vocabulary, embedding, sparse=True)
        self.hidden = nn.Linear(context * embedding, hidden)

    def forward(self, words: Int[Tensor, "batch context"]) -> Float[Tensor, "batch hidden"]:
        return torch.tanh(self.hidden(self.embedding(words).flatten(-2)))
