"""Several captioners that decode as one: every step mixes what they say about the next token.

Mixed logits are a weighted geometric mean of the probabilities (the published system mixes so, 0.5/0.3/0.2): what one
member rules out is ruled out. Mixed probabilities are the arithmetic mean: a token needs one member that is for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal

from torch import Tensor

from xmodal_kedro.captioning.captioner import Captioner, Vocabulary, log_probabilities

States = tuple[Any, ...]  # of the members that have a say


class VocabularyMismatchError(ValueError):
    """Members of an ensemble do not mean the same by the same ids; the message says which, and where they part."""


class EnsembleCaptioner:
    """A captioner like any other; a member of weight 0 costs nothing."""

    def __init__(
        self,
        members: Mapping[str, Captioner[Any]],
        weights: Sequence[float] | None = None,
        mix: Literal["logits", "probabilities"] = "logits",
    ) -> None:
        """Join captioners that share a vocabulary and look at the same images.

        Args:
            members: By name; all take the same images.
            weights: In the order of the members, divided by their sum; equal ones by default.
            mix: What is averaged.

        Raises:
            VocabularyMismatchError: Two members that have a say have different vocabularies.
            ValueError: There are no members, or the weights are not theirs or make no mean.
        """
        if not members:
            raise ValueError("an ensemble of captioners needs members: name one at least")
        if mix not in ("logits", "probabilities"):
            raise ValueError(f"mix is '{mix}': an ensemble of captioners mixes 'logits' or 'probabilities'")
        names = list(members)
        shares = _shares(names, weights)
        speaking = {name: (members[name], share) for name, share in zip(names, shares, strict=True) if share}
        first, *others = speaking
        for name in others:
            _compare(first, members[first].vocabulary, name, members[name].vocabulary)
        self.vocabulary = members[first].vocabulary
        self.mix = mix
        self.members = list(speaking.values())

    def begin(self, images: Tensor, steps: int) -> States:
        """Images [B, ...] to the states of all members, for so many steps at most."""
        return tuple(member.begin(images, steps) for member, _ in self.members)

    def step(self, ids: Tensor, state: States) -> tuple[Tensor, States]:
        """Ids [B] to the mixed logits [B, V] of what follows."""
        stepped = [member.step(ids, part) for (member, _), part in zip(self.members, state, strict=True)]
        if len(widths := {logits.shape[1] for logits, _ in stepped}) > 1:
            raise VocabularyMismatchError(
                f"captioners cannot be mixed that give logits of {', '.join(map(str, sorted(widths)))} tokens, though "
                "their tokenizers are equal: the weights of some have rows without a token. Resize them to the "
                "tokenizer, or leave one of them out"
            )
        states = tuple(part for _, part in stepped)
        if len(stepped) == 1:  # as it is, to the bit
            return stepped[0][0], states
        mixed: Tensor | None = None
        for (logits, _), (_, share) in zip(stepped, self.members, strict=True):
            part = logits.float() if self.mix == "logits" else log_probabilities(logits).exp()
            mixed = part * share if mixed is None else mixed + part * share  # no fused sum: it would break ties
        assert mixed is not None
        return mixed if self.mix == "logits" else mixed.log(), states

    def select(self, state: States, rows: Tensor) -> States:
        """States of the rows [R] of all members."""
        return tuple(member.select(part, rows) for (member, _), part in zip(self.members, state, strict=True))


def _shares(names: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    """Weights that sum to 1."""
    given = [1.0] * len(names) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(names):
        raise ValueError(f"{len(given)} weights for the {len(names)} captioners {', '.join(names)}: give one each")
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not sum(given):
        raise ValueError(f"the weights of the captioners are {given}: give numbers from 0 on, one of them above 0")
    return [weight / sum(given) for weight in given]


def _compare(left_name: str, left: Vocabulary, right_name: str, right: Vocabulary) -> None:
    """Refuse vocabularies that differ.

    Raises:
        VocabularyMismatchError: Naming both members and the first id that means different things.
    """
    why = None
    for index, (one, other) in enumerate(zip_longest(left.tokens, right.tokens)):
        if one != other:
            why = f"id {index} is {_called(one)} for '{left_name}' and {_called(other)} for '{right_name}'"
            break
    else:
        for kind in ("start", "end"):
            one, other = getattr(left, kind), getattr(right, kind)
            if one != other:
                why = f"captions of '{left_name}' {kind} with id {one}, those of '{right_name}' with id {other}"
                break
    if why:
        raise VocabularyMismatchError(
            f"the captioners '{left_name}' and '{right_name}' cannot be mixed, their vocabularies differ: {why}. Train "
            "both with the same vocabulary file, or leave one of them out"
        )


def _called(token: str | None) -> str:
    return "no token" if token is None else f"'{token}'"
