"""Counts a tiny model of every text family of the installed transformers, from its config alone.

    PYTHONPATH=. python tests/benchmarks/count_families.py [FAMILY …]

A family is right if the count equals that of a real forward pass of a model with random weights.
All experts of a mixture together have the same count in both, whatever the router chooses; only
LongCat's router may also choose to do nothing.
"""

import sys
import warnings

import torch
from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from bench.core.errors import BenchError, one_line
from bench.costs.products import counting, forward_macs, sequences
from bench.sources.architectures import class_of, empty, quiet

LENGTH = 24

SMALL = dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"), 32)
SMALL |= dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "ffn_dim", "n_inner"), 64)
SMALL |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "shared_intermediate_size"), 64)
SMALL |= dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2)
SMALL |= dict.fromkeys(("encoder_layers", "decoder_layers", "num_key_value_heads"), 2)
SMALL |= dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4)
SMALL |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
SMALL |= dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4)
SMALL |= dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 128)
SMALL |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32)
SMALL |= {
    "vocab_size": 261,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "d_kv": 8,
    "moe_num_experts": 4,
}
SMALL |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "n_group": 1, "topk_group": 1}
SMALL |= {"decoder_start_token_id": 0}

MLA = {"num_key_value_heads": 4, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
MLA |= {"q_lora_rank": 16, "kv_lora_rank": 16, "head_dim": 8}
OWN = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "expand": 2},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 8,
    },
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "mobilebert": {"true_hidden_size": 32, "intra_bottleneck_size": 32, "embedding_size": 32},
}


LATENT = ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite")
LATENT += ("glm_moe_dsa", "longcat_flash", "minicpm3", "youtu")
OWN |= dict.fromkeys(LATENT, MLA)


def config_of(family):
    """A tiny config: each of SMALL's words that the family's config knows."""
    default = AutoConfig.for_model(family)
    known = set(default.to_dict()) | set(default.attribute_map)
    sizes = {name: size for name, size in SMALL.items() if name in known}
    sizes = {n: s for n, s in sizes.items() if not isinstance(getattr(default, n, 0), (list, dict))}
    return AutoConfig.for_model(family, **(sizes | OWN.get(family, {})))


def real_macs(kind, config):
    """Multiply-adds of a forward pass on real weights, values and all."""
    torch.manual_seed(0)
    config.use_cache = False
    model = kind._from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    with torch.no_grad(), counting() as counter:  # all values are known here
        model(**sequences(model, 1, LENGTH))
    return counter.get_total_flops() // 2


def outcome(family):
    """What happens to a family, in a line."""
    try:
        config = config_of(family)
        kind = class_of(config)
        blank = empty(kind, config)
        if (size := sum(p.numel() for p in blank.parameters())) > 3e7:
            return f"-      {size:,} parameters are no tiny model"
    except BenchError as error:
        return f"refused {error}"
    except Exception as error:
        return f"-      no tiny config: {one_line(error)}"
    try:
        found = forward_macs(blank, LENGTH)[""]
    except BenchError as error:
        found, refusal = None, str(error)
    try:
        real = real_macs(kind, config)
    except Exception as error:
        real = f"does not run: {one_line(error)}"
    if found is None:
        return f"refused {refusal} | real: {real}"
    return f"{'right' if found == real else 'WRONG'}   {kind.__name__} {found:,} real {real}"


def main(families):
    """Prints a line a family."""
    warnings.filterwarnings("ignore")
    quiet()
    auto = modeling_auto
    names = {
        **auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        **auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        **auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    for family in families or sorted(names):
        print(f"{family:24} {outcome(family)[:200]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
