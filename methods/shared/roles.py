"""What the matrices of a block are for: query, key and value rows, and whole FFN neurons.

By the names that transformers gives them; a model with other names has no roles.
"""

from __future__ import annotations

from typing import NamedTuple

from bench.api import BenchError
from bench.weights.targets import Target

_QKV = {
    "q": ("query", "q_proj", "q_lin", "query_proj"),
    "k": ("key", "k_proj", "k_lin", "key_proj"),
    "v": ("value", "v_proj", "v_lin", "value_proj"),
}
_IN = ("intermediate.dense", "mlp.c_fc", "gate_proj", "up_proj", "fc1", "ffn.lin1")
_OUT = ("output.dense", "mlp.c_proj", "down_proj", "fc2", "ffn.lin2")


class FFN(NamedTuple):
    """One feed-forward layer: neuron j is row j of every matrix of `ins` and column j of `out`."""

    ins: list[Target]
    out: Target


def roles(target: Target) -> dict[str, slice]:
    """Returns the rows of the (out, in) weight that make queries, keys and values.

    Returns:
        `q`, `k`, `v` → rows: one of them for a matrix of its own, all three for GPT-2's fused
        c_attn, none for any other matrix.
    """
    leaf = target.name.rpartition(".")[2]
    rows = target.shape[0]
    if target.parts == 3:
        d = rows // 3
        return {"q": slice(0, d), "k": slice(d, 2 * d), "v": slice(2 * d, rows)}
    return {role: slice(0, rows) for role, names in _QKV.items() if leaf in names}


def feed_forward(targets: list[Target]) -> list[FFN]:
    """Returns the feed-forward layers among a model's targets, in order.

    Raises:
        BenchError: the model names its matrices otherwise.
    """
    found: list[FFN] = []
    ins: list[Target] = []
    for target in targets:
        if target.name.endswith(_IN):
            ins.append(target)
        elif target.name.endswith(_OUT) and "attention." not in target.name:
            width = target.shape[1]
            if not ins or any(t.shape[0] != width for t in ins):
                raise BenchError(f"{target.name}: no matrix before it makes its {width} neurons")
            found.append(FFN(ins, target))
            ins = []
    if not found or ins:
        raise BenchError("pattern with neurons: this model's feed-forward matrices are unknown")
    return found
