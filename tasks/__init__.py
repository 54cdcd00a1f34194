"""The built-in tasks by name, one file per family (`tasks/README.md`).

The registry reads `BUILTIN` and imports a module only when its task is asked for. The names of sets
therefore stand here, beside `tasks.glue.SPECS` and `tasks.shared.zero_shot_sets.SETS`.
"""

_ZERO_SHOT = (
    "boolq",
    "rte",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
    "piqa",
    "lambada_openai",
)
_GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")

BUILTIN = {
    "reviews": "tasks.reviews:Reviews",
    **{f"glue/{name}": "tasks.glue:Glue" for name in _GLUE},
    "wikitext": "tasks.wikitext:Wikitext",
    "wikitext-c4": "tasks.wikitext:WikitextC4",
    "zero-shot": "tasks.zero_shot:ZeroShot",
    **{f"zero-shot/{name}": "tasks.zero_shot:ZeroShot" for name in _ZERO_SHOT},
    "nlg/e2e": "tasks.nlg:E2e",
    "nlg/webnlg": "tasks.nlg:Webnlg",
    "nlg/dart": "tasks.nlg:Dart",
    "tiny/reviews": "tasks.tiny:TinyReviews",
    "tiny/wikitext": "tasks.tiny:TinyWikitext",
    "tiny/nlg": "tasks.tiny:TinyNlg",
    "tiny/zero-shot": "tasks.tiny:TinyZeroShot",
}

ON_HUB = {
    **{f"glue/{name}": "nyu-mll/glue" for name in _GLUE},
    "wikitext": "Salesforce/wikitext",
    "wikitext-c4": "Salesforce/wikitext",
    "nlg/e2e": "tuetschek/e2e_nlg",
    "nlg/webnlg": "webnlg-challenge/web_nlg",
    "nlg/dart": "Yale-LILY/dart",
}
"""Data sets that lie on the hub alone, by task: `bench/planning/reach.py` looks for them first."""
