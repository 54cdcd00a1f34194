"""Full-size models from their configs, without memory: for the counts that papers print."""

from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from bench.core.pattern import Pattern
from bench.costs.parameters import count_trainable
from bench.weights import targets

GPT2_MEDIUM = {"n_embd": 1024, "n_layer": 24, "n_head": 16}


def model(kind, **config):
    """A model of a transformers architecture on the meta device, its default config base-size."""
    with torch.device("meta"):
        causal = kind in ("gpt2", "llama", "opt")
        auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        return auto.from_config(AutoConfig.for_model(kind, **config))


def trainable(method, model, pattern="unstructured"):
    """What the optimizer would hold after `method.attach`."""
    with torch.device("meta"):
        ctx = SimpleNamespace(
            targets=targets.prunable(model),
            cell=SimpleNamespace(pattern=Pattern(pattern), sparsity=0.5),
            budget=SimpleNamespace(steps=100),
            device=torch.device("meta"),
            rng=None,
        )
        method.attach(model, ctx)
    return count_trainable(model, method.param_groups(model))
