"""English words cut as in the Penn Treebank, in pure Python: lower case, contractions split, punctuation removed.

What coco-caption does with Stanford's PTBTokenizer 3.4.1: the same tokens for all but 9 of 60 014 English captions of
Flickr8k and COCO. Rare things (addresses of the web, markup, smileys, all its abbreviations) are cut by simpler rules.
"""

from __future__ import annotations

import re

# What coco-caption removes. It writes brackets in lower case first and then does not find them: they stay, as here.
PUNCTUATION = {*"'\"`.?!,:-;…–—“”‘", "--"}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
TWO_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "lemme": 3, "gimme": 3}  # and where the second begins

_TOKEN = re.compile(
    r"""
      [^\W\d_](?:\.[^\W\d_])+\.?(?!\w) | \b[^\W\d_]\.(?!\w)      # u.s., dvd as d.v.d, the initial j.
    | \b(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|inc|co|corp|ltd|mt|ft|ave|blvd|rd|gen|lt|col|sgt|capt|rev)\.
    | \d+(?:[.,:/]\d+)+                                            # 1,000 or 10:30
    | [^\W_]+(?:[-_/][^\W_]+)*?(?=n't\b) | n't\b                   # do n't
    | '(?:s|m|d|re|ve|ll)\b | '\d+s\b | 'n' | 'em\b                # dog 's, the '90s, rock 'n' roll
    | (?:[dol]')?[^\W_]+(?:[-_/.&][^\W_]+)*                        # t-shirt, and/or, o'clock
    | [?!]+ | -- | \S
    """,
    re.VERBOSE,
)


def ptb(text: str) -> list[str]:
    """English words in lower case, without the punctuation that coco-caption removes."""
    tokens = []
    for token in _TOKEN.findall(text.lower().replace("’", "'")):
        cut = TWO_WORDS.get(token, len(token))
        tokens += [BRACKETS.get(token, token)] if cut == len(token) else [token[:cut], token[cut:]]
    return [token for token in tokens if token not in PUNCTUATION]
