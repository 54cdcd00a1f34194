"""The tokens that the E2E script counts for METEOR, ROUGE-L and CIDEr.

e2e-metrics takes them from coco-caption: Stanford's PTBTokenizer 3.4.1 with `-lowerCase`, then a
list of punctuation is dropped. That tokenizer needs Java; a score must not hang on that, so these
rules do the same without. On the 51,426 human references of E2E (all splits) they give what
Stanford's jar gives for all but 5: two abbreviations at the end of a text, three missing spaces.
"""

from __future__ import annotations

import re

# As coco-caption has it; brackets arrive in lower case, so that -lrb- is kept.
PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())

_ABBREVIATIONS = "st|rd|ave|mr|mrs|ms|dr|prof|etc|inc|ltd|co|corp|jr|sr|vs|no"
_TOKEN = re.compile(
    rf"""
      (?:[^\W\d_]\.){{2,}}                                  # u.s.
    | (?:{_ABBREVIATIONS})\.(?=\s+\S|\s*,)                  # st. john's
    | [^\W_]+\.(?=,)                                        # a full stop before a comma
    | (?:(?<!\S)|(?<=£))-?\.?\d+(?:[.,:/]\d+)*[^\W_]*(?:-[^\W_]+)*  # £-25, 5-star
    | \d+(?:[.,:/]\d+)*[^\W_]*(?:-[^\W_]+)*
    | (?<!\S)'s\b
    | [^\W_]+(?:['’-][^\W_]+)*                              # family-friendly, it's
    | \.{{2,}} | --
    | \S
    """,
    re.X,
)
_CLITIC = re.compile(r"(?<=.)(n't|'s|'re|'ve|'ll|'d|'m)$")
_RENAMED = {"£": "#", "€": "$", '"': "''", "(": "-lrb-", ")": "-rrb-"}


def tokens(text: str) -> list[str]:
    """Lower-case words without punctuation: `It's £20.` → `it 's # 20`."""
    found: list[str] = []
    for word in _TOKEN.findall(text.lower()):
        if word.startswith(".."):
            continue
        if word == "cannot":
            found += ["can", "not"]
        elif clitic := _CLITIC.search(word):
            found += [word[: clitic.start()], clitic.group()]
        else:
            found.append(_RENAMED.get(word, word))
    return [word for word in found if word not in PUNCTUATION]
