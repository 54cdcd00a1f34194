"""Shared prefixes: the same log-likelihoods as one request at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from bench.sources.tiny_models import tiny_tokenizer
from tasks.shared import shared_prefix_lm
from tasks.shared.prefix_groups import PrefixGroup, batches, group_by_prefix, pack
from tasks.shared.shared_prefix_lm import SharedPrefixLM

WIDTH = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 261}
CONFIGS = {
    "llama": {**WIDTH, "intermediate_size": 64, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 261, "n_positions": 128},
    "opt": {**WIDTH, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 128},
    "bloom": {"hidden_size": 32, "n_head": 4, "n_layer": 2, "vocab_size": 261},
}
TOKENS = st.lists(st.integers(5, 9), min_size=1, max_size=24)


def made(kind: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **CONFIGS[kind], attn_implementation=attention)
    model = AutoModelForCausalLM.from_config(config).eval()
    # Far from the uniform distribution, so that a wrong mask shows.
    for p in model.parameters():
        p.data.mul_(3.0) if p.ndim > 1 else None
    return SharedPrefixLM(pretrained=model, tokenizer=tiny_tokenizer("gpt2"), max_length=64)


def alone(lm, context, continuation):
    """The definition: one request, one forward pass."""
    text = (context + continuation)[-65:]
    logits = lm.model(torch.tensor([text[:-1]])).logits[0].log_softmax(-1)
    gold = torch.tensor(continuation)
    tail = logits[-len(gold) :]
    value = tail.gather(1, gold[:, None]).sum().item()
    return value, bool((tail.argmax(1) == gold).all())


def questions():
    generator = torch.Generator().manual_seed(1)

    def some(n):
        return torch.randint(5, 261, (n,), generator=generator).tolist()

    passage, requests = some(30), []
    for ctx in (some(12), passage + some(4), passage + some(6), some(3)):
        requests += [(("", ""), ctx, some(n)) for n in (1, 1, 3, 7)]
    context, option = some(9), some(5)
    requests += [(("", ""), [*context, o], option) for o in (7, 8)]  # winogrande's shape
    requests += [(("", ""), context, option), (("", ""), context, option)]  # twice the same
    requests += [(("", ""), some(90), some(4))]  # cut on the left
    return requests


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
@torch.no_grad()
def test_equals_one_request_at_a_time(kind, attention, monkeypatch):
    monkeypatch.setattr(shared_prefix_lm, "BATCH_TOKENS", 100)
    lm, requests = made(kind, attention), questions()
    assert lm._packing_agrees([5, 9, 3, 8, 6], 9)
    found = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    for (value, greedy), (_, context, continuation) in zip(found, requests, strict=True):
        expected = alone(lm, context, continuation)
        assert value == pytest.approx(expected[0], rel=1e-4)
        assert greedy == expected[1]


@torch.no_grad()
def test_a_greedy_continuation_is_recognised():
    lm = made("llama")
    context, said = [7, 9, 11, 200, 13, 30, 31, 32, 33], []
    for _ in range(4):
        said.append(int(lm.model(torch.tensor([context + said])).logits[0, -1].argmax()))
    other = [*said[:-1], (said[-1] + 1) % 261]
    found = lm._loglikelihood_tokens([(("", ""), context, c) for c in (said, other)], True)
    assert [greedy for _, greedy in found] == [True, False]


@torch.no_grad()
def test_a_model_that_takes_no_such_masks_is_run_as_lm_eval_does():
    lm = made("bloom", "eager")  # ALiBi: positions come from the mask
    assert not lm._packing_agrees([5, 9, 3, 8, 6], 9)
    requests = [(("", ""), [5, 6, 7, 8, 9, 10, 11, 12, 13], [c]) for c in (20, 21)]
    for (value, _), (_, context, continuation) in zip(
        lm._loglikelihood_tokens(requests, True), requests, strict=True
    ):
        assert value == pytest.approx(alone(lm, context, continuation)[0], rel=1e-4)


@given(st.lists(TOKENS, min_size=1, max_size=12))
@settings(deadline=None)
def test_every_input_is_in_one_row_and_whole(inputs):
    seen = {}
    for row in group_by_prefix(inputs):
        for rest, members in zip(row.rests, row.members, strict=True):
            for i in members:
                assert i not in seen
                seen[i] = row.shared + rest
    assert seen == dict(enumerate(inputs))


def test_choices_share_their_question_and_equal_inputs_a_rest():
    question = list(range(10, 22))
    (row,) = group_by_prefix([[*question, 1], [*question, 2, 3], [*question, 1], [*question, 4]])
    assert row.shared == question
    assert row.rests == [[1], [2, 3], [4]]
    assert row.members == [[0, 2], [1], [3]]
    other = [9, *question]
    assert len(group_by_prefix([[*question, 1], other])) == 2


@given(st.lists(TOKENS, min_size=1, max_size=12))
@settings(deadline=None)
def test_no_row_is_longer_than_the_longest_allowed(inputs):
    longest = max(map(len, inputs))
    rows = group_by_prefix(inputs, longest)
    assert max(map(len, rows)) <= longest
    assert sorted(i for row in rows for inside in row.members for i in inside) == list(
        range(len(inputs))
    )


def test_a_mask_lets_a_rest_see_the_prefix_and_itself():
    ids, positions, sees = pack(
        [PrefixGroup([5, 6], [[7, 8], [9]], [[0], [1]]), PrefixGroup([4], [[]], [[2]])], 0
    )
    assert ids.tolist() == [[5, 6, 7, 8, 9], [4, 0, 0, 0, 0]]
    assert positions.tolist() == [[0, 1, 2, 3, 2], [0, 0, 0, 0, 0]]
    assert sees[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert torch.equal(sees[1, 0].int(), torch.eye(5, dtype=torch.int))


def test_batches_hold_all_rows_within_the_tokens():
    rows = [PrefixGroup(list(range(n)), [[]], [[n]]) for n in (3, 50, 7, 20, 20, 1)]
    made = list(batches(rows, 50))
    assert sorted(len(r) for batch in made for r in batch) == [1, 3, 7, 20, 20, 50]
    assert all(len(batch) * len(batch[0]) <= 50 for batch in made)
