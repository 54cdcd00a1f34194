"""Which rows of a target are queries, keys and values (METHODS.md §1.2)."""

from __future__ import annotations

from bench.targets import Target

_NAMES = {"query": "q", "key": "k", "value": "v", "q_proj": "q", "k_proj": "k", "v_proj": "v"}


def roles(target: Target) -> dict[str, slice]:
    """`q`, `k`, `v` → row slices of the (out, in) weight; empty for any other matrix.

    BERT and RoBERTa query/key/value, OPT and Llama q_proj/k_proj/v_proj: one whole matrix each.
    GPT-2's c_attn stacks the three.
    """
    last = target.name.rpartition(".")[2]
    out = target.shape[0]
    if last in _NAMES:
        return {_NAMES[last]: slice(0, out)}
    if last == "c_attn" and target.parts == 3:
        d = out // 3
        return {role: slice(p * d, (p + 1) * d) for p, role in enumerate("qkv")}
    return {}
