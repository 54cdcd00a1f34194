"""Methods, one file each. The registry reads this list and imports what is asked for."""

BUILTIN = {
    "dense": "methods.dense:Dense",
    "random": "methods.random_mask:Random",
    "magnitude": "methods.magnitude:Magnitude",
    "wanda": "methods.wanda:Wanda",
    "sparsegpt": "methods.sparsegpt:SparseGPT",
    "owl": "methods.owl:OWL",
    "ria": "methods.ria:RIA",
    "shortgpt": "methods.shortgpt:ShortGPT",
    "sleb": "methods.sleb:SLEB",
    "gmp": "methods.gmp:GMP",
    "movement": "methods.movement:Movement",
    "l0": "methods.l0:L0",
    "platon": "methods.platon:PLATON",
    "losparse": "methods.losparse:LoSparse",
    "lora": "methods.lora:LoRA",
    "rosa": "methods.rosa:RoSA",
    "pst": "methods.pst:PST",
    "dsee": "methods.dsee:DSEE",
    "ast": "methods.ast_trainer:AST",
}
