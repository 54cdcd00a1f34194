"""The tokens on which the E2E script computes METEOR, ROUGE-L and CIDEr.

e2e-metrics takes them from coco-caption: Stanford's PTBTokenizer 3.4.1 with `-lowerCase`, without
a list of punctuation. That tokenizer needs Java, and ROUGE-L and CIDEr should not. The rules here
agree with it on all but 5 of the 51,426 human references of E2E; nltk's tokenizers differ on 7,775
or more (`tasks/README.md`).
"""

from __future__ import annotations

import re

# coco-caption's list. Brackets arrive in lower case, so that -lrb- is kept.
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
    """Returns lower-case words without punctuation: `It's £20.` → `it 's # 20`."""
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


def ptb_text(text: str) -> str:
    """Returns the tokens with spaces between them."""
    return " ".join(tokens(text))
