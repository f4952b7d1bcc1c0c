"""The names of caption metrics, with the tokeniser as part of the name; import-free, so that configs can be checked."""

from __future__ import annotations

BY_TOKENS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "cider_d", "meteor")
BY_EMBEDDINGS = ("clipscore", "ref_clipscore")
TOKENISERS = ("characters", "words", "ptb")


def parse(name: str) -> tuple[str, str]:
    """Metric and tokeniser of a name.

    The same captions score differently by characters and by words: a number without its tokeniser says nothing.

    Args:
        name: `METRIC_TOKENISER`, such as `cider_d_characters`, `bleu_4_words` or `rouge_l_ptb`; or `clipscore` or
            `ref_clipscore`, which compare embeddings.

    Returns:
        The metric and the tokeniser (`""` where there is none).

    Raises:
        ValueError: There is no such metric.
    """
    if name in BY_EMBEDDINGS:
        return name, ""
    metric, _, tokeniser = name.rpartition("_")
    if metric in BY_TOKENS and tokeniser in TOKENISERS:
        return metric, tokeniser
    raise ValueError(
        f"there is no caption metric '{name}'; there are {', '.join(BY_TOKENS)}, each followed by how text is cut "
        f"({', '.join(f'_{kind}' for kind in TOKENISERS)}; for example cider_d_characters), and "
        f"{', '.join(BY_EMBEDDINGS)}."
    )
