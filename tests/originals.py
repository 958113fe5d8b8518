"""Random checkpoints in the authors' own formats, written from their published tables of names and shapes."""

import json
import math

import torch

HIDDEN, INNER, SHARED, HEADS, KV_HEADS, SIZE, MLP, VOCAB = 48, 96, 32, 6, 2, 16, 80, 97
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",  # as published: what would load as a Llama with random attention
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": SIZE,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
MAMBA_CONFIG = {
    "d_model": HIDDEN,
    "ssm_cfg": {"expand": 1},
    "rms_norm_eps": 1e-5,
    "vocab_size": None,
    "d_inner": INNER,
    "d_xb": SHARED,
    "intermediate_size": MLP,
    "hidden_act": "silu",
    "n_layer": 3,
    "attn_layers": [1],
}
MAMBA_CONFIGS = {
    "mamba1": MAMBA_CONFIG,
    "mamba2": {**MAMBA_CONFIG, "ssm_cfg": {"expand": 1, "ngroups": HEADS, "d_state": SIZE}},
}
ATTENTION = {"q_proj": (INNER, HIDDEN), "k_proj": (SHARED, HIDDEN), "v_proj": (SHARED, HIDDEN)}
ATTENTION |= {"o_proj": (HIDDEN, INNER)}
FEED_FORWARD = {"gate_proj": (MLP, HIDDEN), "up_proj": (MLP, HIDDEN), "down_proj": (HIDDEN, MLP)}
CONV = INNER + 2 * SHARED
MIXERS = {
    "mamba1": {
        "in_proj_x.weight": (SHARED, HIDDEN),
        "B_proj.weight": (SHARED, HIDDEN),
        "C_proj.weight": (INNER, HIDDEN),
        "out_proj.weight": (HIDDEN, INNER),
        "in_proj_z.weight": (INNER, HIDDEN),
        "dt_proj_down.weight": (3, HIDDEN),
        "dt_proj.weight": (INNER, 3),
        "dt_proj.bias": (INNER,),
        "conv1d.weight": (INNER, 1, 4),
        "conv1d.bias": (INNER,),
        "A_log": (INNER, 16),
        "D": (INNER,),
    },
    "mamba2": {
        "in_proj.weight": (INNER + CONV + HEADS, HIDDEN),
        "conv1d.weight": (CONV, 1, 4),
        "conv1d.bias": (CONV,),
        "dt_bias": (HEADS,),
        "A_log": (HEADS,),
        "D": (HEADS,),
        "norm.weight": (INNER,),
        "out_proj.weight": (HIDDEN, INNER),
    },
}
FUSED_ORDER = ("in_proj_z", "in_proj_x", "B_proj", "C_proj", "dt_proj_down")


def mamba_in_llama(variant):
    """(config.json, mamba_config.json, name -> shape)."""
    shapes = {name: (VOCAB, HIDDEN) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    for i in range(3):
        layer = {f"mlp.{name}.weight": shape for name, shape in FEED_FORWARD.items()}
        layer |= {f"{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
        if i == 1:
            layer |= {f"self_attn.{name}.weight": shape for name, shape in ATTENTION.items()}
        else:
            layer |= {f"mamba.{name}": shape for name, shape in MIXERS[variant].items()}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return LLAMA, MAMBA_CONFIGS[variant], {**shapes, "model.norm.weight": (HIDDEN,)}


def state_spaces(variant):
    """(config.json, None, name -> shape): what mamba_ssm saves, a tied lm_head included."""
    if variant == "mamba1":
        padded, ssm = 104, {"d_state": 32}
        mixer = {
            "in_proj.weight": (2 * INNER, HIDDEN),
            "conv1d.weight": (INNER, 1, 4),
            "conv1d.bias": (INNER,),
            "x_proj.weight": (3 + 2 * 32, INNER),
            "dt_proj.weight": (INNER, 3),
            "dt_proj.bias": (INNER,),
            "A_log": (INNER, 32),
            "D": (INNER,),
            "out_proj.weight": (HIDDEN, INNER),
        }
    else:
        padded, ssm, conv = 112, {"layer": "Mamba2", "headdim": 32, "d_state": 48, "ngroups": 3}, INNER + 6 * 48
        mixer = {
            "in_proj.weight": (INNER + conv + 3, HIDDEN),
            "conv1d.weight": (conv, 1, 4),
            "conv1d.bias": (conv,),
            "dt_bias": (3,),
            "A_log": (3,),
            "D": (3,),
            "norm.weight": (INNER,),
            "out_proj.weight": (HIDDEN, INNER),
        }
    config = {"d_model": HIDDEN, "n_layer": 3, "vocab_size": VOCAB, "ssm_cfg": ssm, "rms_norm": True}
    config |= {"residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8 if padded == 104 else 16}
    shapes = {"backbone.embedding.weight": (padded, HIDDEN), "backbone.norm_f.weight": (HIDDEN,)}
    for i in range(3):
        shapes |= {f"backbone.layers.{i}.mixer.{name}": shape for name, shape in mixer.items()}
        shapes[f"backbone.layers.{i}.norm.weight"] = (HIDDEN,)
    return config, None, {**shapes, "lm_head.weight": (padded, HIDDEN)}


FORMATS = {
    f"{name} {variant}": (function, variant)
    for name, function in (("mamba_in_llama", mamba_in_llama), ("state_spaces", state_spaces))
    for variant in ("mamba1", "mamba2")
}


def random_parameters(shapes, dtype=torch.float32, seed=3):
    generator = torch.Generator().manual_seed(seed)

    def values(name, shape):
        if name.endswith("A_log"):
            return torch.empty(shape).uniform_(1, 16, generator=generator).log()
        # Nothing that is divided by its RMS is next to nothing: a token's rounding would be amplified a hundredfold.
        if "norm" in name or name.endswith(("D", "conv1d.bias")):
            return torch.empty(shape).uniform_(0.5, 1.5, generator=generator)
        to_residual = any(part in name for part in ("out_proj", "o_proj", "down_proj"))
        scale = 0.3 if to_residual else 1.0 if name.endswith("bias") else 1.3
        scale = scale if name.endswith("bias") or "embed" in name else scale / math.sqrt(shape[-1])
        return scale * torch.randn(shape, generator=generator)

    parameters = {name: values(name, shape).to(dtype) for name, shape in shapes.items()}
    if "backbone.embedding.weight" in parameters:
        parameters["lm_head.weight"] = parameters["backbone.embedding.weight"]
    return parameters


def write(folder, name, dtype=torch.float32):
    """The folder with one pickled file, and (config.json, mamba_config.json, parameters)."""
    function, variant = FORMATS[name]
    config, mamba_config, shapes = function(variant)
    parameters = random_parameters(shapes, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if mamba_config is not None:
        (folder / "mamba_config.json").write_text(json.dumps(mamba_config))
    torch.save(parameters, folder / "pytorch_model.bin")
    return config, mamba_config, parameters
