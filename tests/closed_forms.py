"""Trainable elements of every built-in method, as methods/README.md has them."""

import math

from bench.core.record import Trainable
from bench.weights import targets


def _head(model):
    return sum(p.numel() for _, p in targets.head_parameters(model))


def _dense(model, params):
    total = sum(p.numel() for p in model.parameters())
    return Trainable(body=total - _head(model), head=_head(model))


def _nothing(model, params):
    return Trainable(body=0, head=0)


def _pst(model, params):
    """(r1 + r2 + 1)·(o + i) a logical matrix (pst)."""
    body = 0
    for target in targets.prunable(model):
        o, i = target.shape
        parts = target.parts if params.split_qkv else 1
        body += parts * (2 * params.rank + 1) * (o // parts + i)
    return Trainable(body=body, head=_head(model))


def _dsee(model, params):
    """r(o + i) + N for q and v of every layer (dsee)."""
    c = model.config
    d, size = c.hidden_size, c.hidden_size // c.num_attention_heads
    values = size * (getattr(c, "num_key_value_heads", None) or c.num_attention_heads)
    layer = sum(params.rank * (o + d) + params.support for o in (d, values))
    return Trainable(body=c.num_hidden_layers * layer, head=_head(model))


def _ast(model, params):
    """Everything; SLoRB adds Q: (o, i/k) and, where it is trained, X: (i/k, i) (ast)."""
    dense = _dense(model, params)
    if params.slorb == "none":
        return dense
    shapes = [(o, i, i // params.slorb_k) for o, i in (t.shape for t in targets.prunable(model))]
    extra = sum(r * (o + i * params.train_projection) for o, i, r in shapes)
    return Trainable(body=dense.body + extra, head=dense.head)


def _scored(model, params):
    """All weights, and a score for every prunable one (movement, l0)."""
    dense = _dense(model, params)
    scores = sum(o * i for o, i in (t.shape for t in targets.prunable(model)))
    return Trainable(body=dense.body + scores, head=dense.head)


def _lora(model, params):
    """r·(o + i) for each block's query and value (lora)."""
    config = model.config
    d, heads = config.hidden_size, config.num_attention_heads
    value = d * (getattr(config, "num_key_value_heads", None) or heads) // heads
    body = config.num_hidden_layers * params.rank * ((d + d) + (value + d))
    return Trainable(body=body, head=_head(model))


def _losparse(model, params):
    """Everything, and ρ·(o + i) a matrix, ρ = ⌈κ·o·i/(o + i)⌉ (losparse)."""
    dense = _dense(model, params)
    shapes = [t.shape for t in targets.prunable(model)]
    branches = sum(math.ceil(params.kappa * o * i / (o + i)) * (o + i) for o, i in shapes)
    return Trainable(body=dense.body + branches, head=dense.head)


def _rosa(model, params):
    """r·(o + i) + ⌊d·n⌋ a logical matrix (rosa)."""
    body = 0
    for target in targets.prunable(model):
        o, i = target.shape[0] // target.parts, target.shape[1]
        body += target.parts * (params.rank * (o + i) + math.floor(params.density * o * i))
    return Trainable(body=body, head=_head(model))


TRAINABLE = {
    "dense": _dense,
    "random": _nothing,
    "magnitude": _nothing,
    "pst": _pst,
    "dsee": _dsee,
    "ast": _ast,
    "wanda": _nothing,
    "sparsegpt": _nothing,
    "owl": _nothing,
    "ria": _nothing,
    "gmp": _dense,
    "movement": _scored,
    "l0": _scored,
    "platon": _dense,
    "losparse": _losparse,
    "lora": _lora,
    "rosa": _rosa,
}
