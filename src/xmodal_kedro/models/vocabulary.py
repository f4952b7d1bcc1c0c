"""The WordPiece vocabulary of a model with random weights: from a vocab.txt, or learned from the train texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import BertTokenizer

from xmodal_kedro.models.backbone import ArchitectureError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary_of(file: object, texts: Sequence[str], limit: int) -> list[str]:
    """Tokens in the order of their ids.

    Args:
        file: `architecture.vocabulary`, a vocab.txt; without it one is learned.
        texts: Train texts to learn from.
        limit: Tokens at most, where they are learned.

    Raises:
        ArchitectureError: There is neither, or the file is no vocabulary of BERT.
    """
    if file is not None:
        return read_vocabulary(Path(str(file)).expanduser())
    if not texts:
        raise ArchitectureError("backbone.architecture needs a vocabulary file, or texts to learn one")
    return learn_vocabulary(texts, limit)


def learn_vocabulary(texts: Iterable[str], limit: int) -> list[str]:
    """Learn a WordPiece vocabulary: every character, alone and as a continuation, then the most frequent words.

    Chinese characters are words of their own in BERT, so this is its character vocabulary there and a word vocabulary
    elsewhere; unseen words fall apart into characters. Ties are broken by the alphabet: the result is always the same.

    Args:
        texts: Train texts, as the family's `tokenize` hands them on.
        limit: Tokens at most; frequent characters go first if not even they fit.
    """
    bert = BertTokenizer().backend_tokenizer
    words: Counter[str] = Counter()
    for text, count in Counter(texts).items():
        for word, _ in bert.pre_tokenizer.pre_tokenize_str(bert.normalizer.normalize_str(text)):
            words[word] += count
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for position, character in enumerate(word):
            characters[character if position == 0 else f"##{character}"] += count
    ranked = [*_by_frequency(characters), *_by_frequency(words)]
    return list(dict.fromkeys([*SPECIAL, *ranked]))[:limit]


def read_vocabulary(file: Path) -> list[str]:
    """Read a vocab.txt of BERT.

    Raises:
        ArchitectureError: There is no such file, or it is none.
    """
    if not file.is_file():
        raise ArchitectureError(f"backbone.architecture.vocabulary: there is no file {file.absolute()}")
    with file.open(encoding="utf-8") as lines:  # not splitlines(): some tokens are separators of other kinds
        vocabulary = [line.rstrip("\n") for line in lines]
    if missing := [token for token in SPECIAL if token not in vocabulary]:
        raise ArchitectureError(f"backbone.architecture.vocabulary: {file} is no BERT vocabulary, it lacks {missing}")
    return vocabulary


def write_vocabulary(tokenizer: BertTokenizer, directory: Path) -> None:
    """Write the tokenizer with the vocab.txt that published models have and transformers no longer writes."""
    tokenizer.save_pretrained(directory)
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in by_id), encoding="utf-8")


def _by_frequency(counts: Counter[str]) -> list[str]:
    return [token for _, token in sorted((-count, token) for token, count in counts.items())]
