"""Zero-shot equals lm-eval whatever a model's attention sees: windows, chunks, positions, caps."""

import random

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig

from bench.sources.tiny_models import tiny_tokenizer
from tasks.shared import shared_prefix_lm
from tasks.shared.shared_prefix_lm import SharedPrefixLM, reach
from tests.field import families

WINDOW = 32
GROUPED = {"num_key_value_heads": 2}
SLIDING = GROUPED | {"sliding_window": WINDOW}
GEMMA = SLIDING | {"head_dim": 8}
NO_CAP = {"attn_logit_softcapping": 1e9, "final_logit_softcapping": 1e9}
BLOOM = dict.fromkeys(families.OWN) | {"hidden_size": 32, "n_layer": 3, "n_head": 4}
NEO = dict.fromkeys(families.OWN) | {"hidden_size": 32, "num_layers": 2, "num_heads": 4}
NEO |= {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 128}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": WINDOW,
}
WINDOWS = {
    "mistral": SLIDING,
    "gemma2 without caps": GEMMA | NO_CAP,
    "gemma3_text": GEMMA,
    "gpt_oss": GEMMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phi3": SLIDING,
    "phi3 longrope": GROUPED
    | {
        "sliding_window": None,
        "original_max_position_embeddings": WINDOW,
        "rope_parameters": LONGROPE,
    },
    "qwen2": SLIDING | {"use_sliding_window": True, "max_window_layers": 1},
    "starcoder2": SLIDING,
    "exaone4": SLIDING,
    "olmo3": SLIDING,
}
"""Families whose short requests are packed and whose long ones are not."""
NEO |= {"window_size": WINDOW}
UNLIKE = {
    "gpt_neo": NEO,  # its windows count places in the row, not positions
    "gemma2": GEMMA,
    "cohere2": SLIDING,
    "cohere": GROUPED | {"logit_scale": 0.25},
    "bloom": BLOOM,
    "falcon": GROUPED | {"alibi": True, "new_decoder_architecture": True, "num_kv_heads": 2},
    "mpt": dict.fromkeys(families.OWN)
    | {"d_model": 32, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2},
    "mamba": {"num_attention_heads": None, "intermediate_size": None},
    "llama4_text": GROUPED
    | {
        "head_dim": 8,
        "attention_chunk_size": WINDOW,
        "num_local_experts": 2,
        "intermediate_size_mlp": 64,
    },
    "recurrent_gemma": {
        "num_key_value_heads": 1,
        "attention_window_size": WINDOW,
        "lru_width": 32,
    },
}
"""Families that take no packed rows, or change what the head returns."""
PLAIN = {"llama": GROUPED, "gpt2": families.GPT2, "qwen2": GROUPED, "smollm3": GROUPED}
"""Families without windows: all requests are packed."""


def model(name, more):
    made = families.build(name.split()[0], **more)
    for p in made.parameters():
        if p.ndim > 1:  # far from the uniform distribution, so that a wrong mask shows
            p.data.mul_(8)
    return made


def requests():
    """Questions with four endings, shorter and longer than the window."""
    draw = random.Random(0)
    asked = []
    for length in (12, 20, 33, 60, 60):
        prompt = draw.sample(range(5, 261), length)
        asked += [(("", ""), prompt, draw.sample(range(5, 261), 4)) for _ in range(4)]
    return asked


class Watched(SharedPrefixLM):
    """Counts the requests that are packed."""

    packed = 0

    def _score(self, rows, golds):
        self.packed += sum(len(inside) for row in rows for inside in row.members)
        return super()._score(rows, golds)


def both(made, asked=None, **more):
    """(ours, lm-eval's answers, how many of ours were packed)."""
    asked = asked or requests()
    tok = tiny_tokenizer("gpt2")
    ours = Watched(pretrained=made, tokenizer=tok, batch_size=1, **more)
    theirs = HFLM(pretrained=made, tokenizer=tok, batch_size=1, **more)
    found = ours._loglikelihood_tokens(list(asked), disable_tqdm=True)
    return found, theirs._loglikelihood_tokens(list(asked), disable_tqdm=True), ours.packed


def apart(found, expected):
    return max(abs(a[0] - b[0]) for a, b in zip(found, expected, strict=True))


def equal(found, expected):
    assert apart(found, expected) < 1e-3
    assert [a[1] for a in found] == [b[1] for b in expected]


@pytest.mark.parametrize("name", WINDOWS)
def test_requests_within_the_window_are_packed_and_the_others_are_not(name):
    made = model(name, WINDOWS[name])
    assert reach(made.config) == WINDOW
    found, expected, packed = both(made)
    equal(found, expected)
    # 12 + 3 and 20 + 3 tokens are within 32.
    assert packed == 8


@pytest.mark.parametrize("name", UNLIKE)
def test_what_packs_differently_is_scored_by_lm_eval(name):
    found, expected, packed = both(model(name, UNLIKE[name]))
    equal(found, expected)
    assert packed == 0


@pytest.mark.parametrize("name", PLAIN)
def test_without_a_window_all_requests_are_packed(name):
    made = model(name, PLAIN[name])
    assert reach(made.config) is None
    found, expected, packed = both(made)
    equal(found, expected)
    assert packed == len(found)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "gpt_neo"])
def test_a_packed_row_beyond_the_window_would_be_wrong(name, monkeypatch):
    monkeypatch.setattr(shared_prefix_lm, "reach", lambda config: None)
    monkeypatch.setattr(Watched, "_packing_agrees", lambda *_: True)
    found, expected, _ = both(model(name, (WINDOWS | UNLIKE)[name]))
    assert apart(found, expected) > 0.1


@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "gpt_neo", "phi3 longrope"])
def test_a_window_that_the_config_does_not_name_is_found_by_the_longest_request(name, monkeypatch):
    monkeypatch.setattr(shared_prefix_lm, "reach", lambda config: None)
    found, expected, packed = both(model(name, (WINDOWS | UNLIKE)[name]))
    equal(found, expected)
    assert packed == 0


def test_a_window_seen_by_few_tokens_of_the_longest_request_is_found(monkeypatch):
    monkeypatch.setattr(shared_prefix_lm, "reach", lambda config: None)
    prompt = random.Random(1).sample(range(5, 261), WINDOW - 1)
    asked = [(("", ""), prompt, [9, 10 + i, 7]) for i in range(4)]  # 33 tokens are inputs
    found, expected, packed = both(model("mistral", WINDOWS["mistral"]), asked)
    equal(found, expected)
    assert packed == 0


@pytest.mark.parametrize("cut", [40, 64])
def test_a_request_cut_on_the_left_is_compared_after_the_cut(cut):
    found, expected, _ = both(model("mistral", SLIDING), max_length=cut)
    equal(found, expected)


def test_a_request_of_one_token():
    asked = [(("", ""), [7], [9]), (("", ""), [7], [10])]
    found, expected, packed = both(model("llama", GROUPED), asked)
    equal(found, expected)
    assert packed == 2


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AutoConfig.for_model("qwen2", sliding_window=16), None),  # use_sliding_window is False
        (AutoConfig.for_model("mixtral", sliding_window=None, num_local_experts=4), None),
        (AutoConfig.for_model("mistral", sliding_window=4096), 4096),
        (AutoConfig.for_model("gpt_neo"), 256),
        (AutoConfig.for_model("llama4_text", attention_chunk_size=512), 512),
        (AutoConfig.for_model("llama"), None),
    ],
)
def test_the_config_names_its_windows(config, expected):
    found = reach(config)
    assert found == expected


@torch.no_grad()
def test_half_precision_weights_are_packed_too():
    made = families.build("llama", num_key_value_heads=2).to(torch.bfloat16)
    _, _, packed = both(made)
    assert packed == len(requests())
