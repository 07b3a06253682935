"""Text for language modelling: embedded, downloaded or the user's own file, as bytes, characters or
words.

Losses of different tokenisations are compared in nats per byte of UTF-8:

    nats per byte = (sum of the tokens' losses in nats) / (sum of the tokens' bytes)
"""

import hashlib
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from heterodox.data.download import fetch
from heterodox.data.errors import DataError
from heterodox.data.registry import datasets, near
from heterodox.data.words import number_words, split_words

Tokens = Literal["byte", "char", "word"]

STDLIB_BYTES = 4_000_000  # enough for a small model, and every run reads the same modules


@dataclass(frozen=True)
class EncodedText:
    """A text as tokens.

    Attributes:
        kind: "byte", "char" or "word".
        train, validation: the tokens.
        test: the same, or None where the text has no test part of its own.
        vocabulary: what each token stands for: single bytes; characters of the training text in
            order; or its words, the most frequent first. Then None if there are characters or
            words besides.
        token_bytes: how many bytes of UTF-8 each token stands for; for None the mean over its
            occurrences outside the training text, so that the sum over that text stays exact.
    """

    kind: Tokens
    train: Int64[Tensor, "train_length"]
    validation: Int64[Tensor, "validation_length"]
    test: Int64[Tensor, "test_length"] | None
    vocabulary: tuple[bytes | str | None, ...]
    token_bytes: Float64[Tensor, "vocabulary"]

    @property
    def vocabulary_size(self) -> int:
        return len(self.vocabulary)

    def count_bytes(self, tokens: Int64[Tensor, "..."]) -> float:
        """The bytes of UTF-8 that `tokens` stand for: what a sum of losses is divided by.

        Example:
            >>> text = TextData("ours", "an", "né", None, "", "")
            >>> encoded = text.encode("char")
            >>> encoded.count_bytes(encoded.validation)
            3.0
        """
        return self.token_bytes.to(tokens.device)[tokens].sum().item()

    def decode(self, tokens: Int64[Tensor, "length"]) -> str:
        """The text behind `tokens`; U+FFFD for what cannot be told.

        Example:
            >>> encoded = load_text("python-docs").encode("byte")
            >>> encoded.decode(encoded.train[:15])
            'The "assert" st'
        """
        entries = [self.vocabulary[token] for token in tokens.tolist()]
        if self.kind == "byte":
            return b"".join(entries).decode("utf-8", errors="replace")
        return "".join("\ufffd" if entry is None else entry for entry in entries)


@dataclass(frozen=True)
class TextData:
    """A text, cut into its parts.

    Attributes:
        name: the dataset's name, or the path that was given.
        train, validation: the parts; the first 90 % of the characters and the rest, unless the
            dataset has an official split.
        test: the official test part, or None.
        sha256: of the parts' UTF-8, one after the other; tells which text a result is about.
        description: where the text comes from, in a line.
        separated: whether its words stand between white space already; see `split_words`.
    """

    name: str
    train: str
    validation: str
    test: str | None
    sha256: str
    description: str
    separated: bool = False

    def require_length(self, tokens: int, kind: Tokens = "char") -> None:
        """Check that the training and the validation part can be cut into windows.

        Args:
            tokens: the least that each part must hold, for example context length + 1.
            kind: of tokens. A byte is counted as a character, since a part has at least as many.

        Raises:
            ValueError: one of them is shorter; the message names `data`.

        Example:
            >>> load_text("python-docs").require_length(1025)
        """
        for part, text in (("training", self.train), ("validation", self.validation)):
            words = kind == "word"
            count = len(split_words(text, self.separated)) if words else len(text)
            if count < tokens:
                raise ValueError(
                    f"data: {self.name!r} has {count} {'words' if words else 'characters'} for "
                    f"{part}, at least {tokens} expected"
                )

    def encode(self, kind: Tokens = "byte", vocabulary: int | None = None) -> EncodedText:
        """The text as tokens: its bytes of UTF-8, its characters or its words.

        Args:
            kind: "byte" for a vocabulary of 256, the same for every text; "char" for the characters
                of the training part, and one token for all those that only other parts hold; "word"
                for the training part's words, see `split_words`, and one token for all others.
            vocabulary: with "word", how many of the most frequent words are told apart; None: all.

        Raises:
            ValueError: `kind` is something else, or `vocabulary` is not positive, or given to
                tokens that are no words.

        Example:
            >>> encoded = load_text("python-docs").encode("char")
            >>> encoded.kind, encoded.train.dtype
            ('char', torch.int64)
        """
        if kind not in ("byte", "char", "word"):
            raise ValueError(f"kind: {kind!r} given, 'byte', 'char' or 'word' expected")
        if vocabulary is not None and (kind != "word" or vocabulary < 1):
            expected = "a positive number" if kind == "word" else f"None with tokens {kind!r}"
            raise ValueError(f"vocabulary: {vocabulary} given, {expected} expected")
        if kind == "byte":
            return self._encode_bytes()
        return self._encode_characters() if kind == "char" else self._encode_words(vocabulary)

    def _encode_bytes(self) -> EncodedText:
        def tokens(text: str) -> Tensor:
            values = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
            return torch.from_numpy(values.astype(np.int64))

        return EncodedText(
            kind="byte",
            train=tokens(self.train),
            validation=tokens(self.validation),
            test=None if self.test is None else tokens(self.test),
            vocabulary=tuple(bytes([value]) for value in range(256)),
            token_bytes=torch.ones(256, dtype=torch.float64),
        )

    def _encode_characters(self) -> EncodedText:
        seen = set(self.train)
        characters = sorted(seen)
        known = np.array([ord(character) for character in characters], dtype=np.uint32)
        unseen = [c for c in self.validation + (self.test or "") if c not in seen]
        unknown = [len("".join(unseen).encode("utf-8")) / len(unseen)] if unseen else []

        def tokens(text: str) -> Tensor:
            codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
            places = np.searchsorted(known, codes)
            found = np.append(known, 0)[places] == codes
            return torch.from_numpy(np.where(found, places, len(known)))

        return EncodedText(
            kind="char",
            train=tokens(self.train),
            validation=tokens(self.validation),
            test=None if self.test is None else tokens(self.test),
            vocabulary=(*characters, *[None for _ in unknown]),
            token_bytes=torch.tensor(
                [len(character.encode("utf-8")) for character in characters] + unknown,
                dtype=torch.float64,
            ),
        )

    def _encode_words(self, limit: int | None) -> EncodedText:
        texts = [self.train, self.validation, *([] if self.test is None else [self.test])]
        words = [split_words(text, self.separated) for text in texts]
        (train, validation, *test), vocabulary, token_bytes = number_words(words, limit)
        return EncodedText(
            kind="word",
            train=train,
            validation=validation,
            test=test[0] if test else None,
            vocabulary=vocabulary,
            token_bytes=token_bytes,
        )


def load_text(data: str | Path) -> TextData:
    """A text by name, or the user's own file in UTF-8.

    Args:
        data: "python-docs" or "python-stdlib" (with every Python; they differ between versions),
            "tinyshakespeare" or "ptb" (downloaded), or the path of a file.
            A name goes before a file of the same name, unless it is a `Path`; write `./ptb` for
            the file.

    Raises:
        ValueError: `data` is neither a name nor a file, is a folder, is empty or is not UTF-8.
        DataError: a dataset cannot be had, see `heterodox.data.fetch`.

    Example:
        >>> text = load_text("python-docs")
        >>> 0.89 < len(text.train) / (len(text.train) + len(text.validation)) < 0.91
        True
    """
    entries = {entry.name: entry for entry in datasets("text")}
    path = Path(data)
    # A command line makes a Path of every name.
    if str(data) not in entries or (isinstance(data, Path) and path.exists()):
        return _cut(str(data), _read_file(path), description=f"file {path.name}")
    entry = entries[str(data)]
    if entry.name == "python-docs":
        return _cut(entry.name, _python_docs(), f"{entry.title}, {_python()}")
    if entry.name == "python-stdlib":
        return _cut(entry.name, _python_stdlib(), f"{entry.title}, {_python()}")
    parts = [path.read_bytes().decode("utf-8") for path in fetch(entry.name).values()]
    if len(parts) == 1:
        return _cut(entry.name, parts[0], entry.title)
    train, validation, test = parts  # the order of the registry
    return TextData(
        name=entry.name,
        train=train,
        validation=validation,
        test=test,
        sha256=hashlib.sha256("".join(parts).encode("utf-8")).hexdigest(),
        description=entry.title,
        separated=entry.name == "ptb",
    )


def _cut(name: str, text: str, description: str) -> TextData:
    border = int(0.9 * len(text))
    return TextData(
        name=name,
        train=text[:border],
        validation=text[border:],
        test=None,
        sha256=hashlib.sha256(text.encode("utf-8")).hexdigest(),
        description=description,
    )


def _read_file(path: Path) -> str:
    if path.is_dir():
        raise ValueError(f"data: {str(path)!r} is a folder, a text file expected")
    if not path.exists():
        names = ", ".join(entry.name for entry in datasets("text"))
        raise ValueError(
            f"data: {str(path)!r} given, an existing file or one of {names} expected"
            f"{near(str(path), 'text')}"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"data: {str(path)!r} cannot be read ({error.strerror})") from error
    if not content.strip():
        raise ValueError(f"data: {str(path)!r} is empty, text expected")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data: {str(path)!r} is not UTF-8 (byte 0x{content[error.start]:02x} at offset "
            f"{error.start}), a text file in UTF-8 expected"
        ) from error


def _python() -> str:
    return f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"


def _python_docs() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "python-docs: this Python comes without the topics of its documentation"
        ) from error
    return "\n".join(topics[key] for key in sorted(topics))


def _python_stdlib() -> str:
    """The public top-level modules in alphabetical order, as many as fit `STDLIB_BYTES`."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    modules = [
        path
        for path in sorted(folder.glob("*.py"))
        if path.stem in sys.stdlib_module_names and not path.stem.startswith("_")
    ]
    if not modules:
        raise DataError(f"python-stdlib: there are no source files in {folder}")
    parts: list[str] = []
    total = 0
    for path in modules:
        content = path.read_bytes()
        total += len(content)
        if total > STDLIB_BYTES:
            break
        parts.append(content.decode("utf-8"))
    return "".join(parts)
