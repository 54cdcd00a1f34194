"""Tasks, one file a family. The registry reads this list and imports what is asked for."""

_GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")

BUILTIN = {
    "reviews": "tasks.reviews:Reviews",
    **{f"glue/{name}": "tasks.glue:Glue" for name in _GLUE},
    "wikitext": "tasks.wikitext:Wikitext",
    "nlg/e2e": "tasks.nlg:E2e",
    "nlg/webnlg": "tasks.nlg:Webnlg",
    "tiny/reviews": "tasks.tiny:TinyReviews",
    "tiny/wikitext": "tasks.tiny:TinyWikitext",
    "tiny/nlg": "tasks.tiny:TinyNlg",
}
