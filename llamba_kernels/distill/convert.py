"""Turn attention layers into Mamba-2 mixers without training: weight transfer, then closed-form calibration.

W_V, W_K, W_Q and W_O become the x, B, C rows of in_proj and out_proj (arXiv 2408.15237). Left at that, the mixer's
output has the wrong scale and the model is far worse than with the layers deleted. So two least-squares problems are
solved on a few thousand tokens: a gate that is open for every token, and the norm.weight that brings the mixer closest
to the attention's output. norm.weight = 0 would be deletion, so on these tokens the result is no worse than that.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..models import LlambaConfig, LlambaForCausalLM, load_model, load_tokenizer
from ..models.config_checks import STATE_RULE, STATE_SIZES
from ..models.mamba2 import Mamba2Mixer
from ..models.model import LlambaAttention
from .folders import check_absent, new_folder, save_model
from .forward import embed, fast_autocast
from .progress import track
from .text import read_text, token_windows

OPEN_GATE = 2.0  # z aims at this value: SiLU is nearly linear there, so the gate starts close to a constant factor
RIDGE = 1e-4  # of the mean diagonal: keeps directions that the calibration tokens hardly show from blowing up


@dataclass(frozen=True)
class Conversion:
    """The squared error of each converted layer's output relative to the attention's; deletion is 1."""

    layers: list[int]
    error: dict[int, float]
    tokens: int
    seconds: float


def convert(
    teacher_dir: str | Path,
    out_dir: str | Path,
    layers: Iterable[int],
    data: str | Path | Sequence[str | Path] | None = None,
    tokens: int = 4096,
    window: int = 512,
    seed: int = 0,
) -> Conversion:
    """Write the hybrid of the model in `teacher_dir` whose `layers` are calibrated Mamba-2 mixers to `out_dir`."""
    check_absent("convert", out_dir)
    teacher = load_model(teacher_dir)
    tokenizer = load_tokenizer(teacher_dir, teacher)
    windows = token_windows(tokenizer, read_text(data).train, window, max(1, tokens // window), f"convert {seed}")
    student, conversion = convert_model(teacher, layers, windows, seed)
    with new_folder(out_dir, "convert") as staging:
        save_model(student, tokenizer, staging)
    return conversion


@torch.no_grad()
def convert_model(
    teacher: LlambaForCausalLM, layers: Iterable[int], windows: Tensor, seed: int = 0
) -> tuple[LlambaForCausalLM, Conversion]:
    """As `convert`, on models in memory and (count, window) token ids; all but the mixers is the teacher's own."""
    started = time.perf_counter()
    layers = sorted(set(layers))
    for layer in layers:
        kinds = teacher.config.layers
        if not 0 <= layer < len(kinds) or kinds[layer] != "attention":
            raise ValueError(f"convert: layers must be attention layers of the teacher; got {layer}")
    if not layers:
        raise ValueError("convert: layers must name at least one layer; got none")
    if teacher.config.attention_bias:
        raise ValueError("convert: teacher must have attention without biases, as mixers are; got attention_bias True")
    if teacher.config.head_dim not in STATE_SIZES:
        raise ValueError(f"convert: head_dim must {STATE_RULE}; got {teacher.config.head_dim}")

    student = hybrid_of(teacher, layers)
    generator = torch.Generator().manual_seed(seed)
    error = {}
    inputs = mixer_inputs(teacher, layers, windows.to(teacher.device))
    for layer, u, target in track(inputs, "convert", total=len(layers)):
        mixer = student.model.layers[layer].mamba
        transfer(teacher.model.layers[layer].self_attn, mixer, generator)
        open_gate(mixer, u)
        error[layer] = calibrate_scale(mixer, u, target)
    return student, Conversion(layers, error, windows.numel(), time.perf_counter() - started)


def hybrid_of(teacher: LlambaForCausalLM, layers: Iterable[int]) -> LlambaForCausalLM:
    """The teacher with fresh mixers in `layers`; every other module is the teacher's own, not a copy."""
    kinds = ["mamba2" if i in layers else kind for i, kind in enumerate(teacher.config.layers)]
    config = LlambaConfig.from_dict({**teacher.config.to_dict(), "layers": kinds})
    with torch.device("meta"):
        student = LlambaForCausalLM(config)
    student.lm_head, student.model.embed_tokens = teacher.lm_head, teacher.model.embed_tokens
    student.model.norm = teacher.model.norm
    for i, (mine, theirs) in enumerate(zip(student.model.layers, teacher.model.layers, strict=True)):
        for name, module in theirs.named_children():
            if i in layers and name == "self_attn":
                mine.mamba = Mamba2Mixer(config, i).to(module.q_proj.weight)
            else:
                setattr(mine, name, module)
    student.generation_config = teacher.generation_config
    return student.eval()


def mixer_inputs(
    teacher: LlambaForCausalLM, layers: Sequence[int], windows: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each layer in `layers`, from below: its index, its mixer's input and output, both (windows, L, hidden).

    One teacher pass serves all layers, and nothing above the last of them runs. Autocast and no_grad are left before
    each yield: the caller's own arithmetic is not under them.
    """
    with torch.no_grad(), fast_autocast(teacher.device):
        hidden, context = embed(teacher, windows)
    for i in range(max(layers) + 1):
        layer = teacher.model.layers[i]
        with torch.no_grad(), fast_autocast(teacher.device):
            if i in layers:
                u = layer.input_layernorm(hidden)
                mixed = layer.mix(u, context)
                hidden = layer.feed_forward(layer.add(hidden, mixed))
            else:
                hidden = layer(hidden, context)
        if i in layers:
            yield i, u, mixed


def transfer(attention: LlambaAttention, mixer: Mamba2Mixer, generator: torch.Generator):
    """Copy V, K, Q and O; start the convolution as the identity and the dynamics as Mamba-2 does. RoPE is dropped."""
    z, x, B, C, dt = mixer.in_proj.weight.split([mixer.d_inner, *mixer.xBC_sizes, mixer.num_heads])
    for rows, source in ((x, attention.v_proj), (B, attention.k_proj), (C, attention.q_proj)):
        rows.copy_(source.weight)
    z.zero_()
    dt.zero_()  # every token starts with the same step size, that of dt_bias
    mixer.out_proj.weight.copy_(attention.o_proj.weight)
    mixer.conv1d.weight.zero_()
    mixer.conv1d.weight[:, 0, -1] = 1
    mixer.conv1d.bias.zero_()
    mixer.norm.weight.fill_(1)
    for name, value in mixer.initial_dynamics(generator).items():
        getattr(mixer, name).copy_(value)


def open_gate(mixer: Mamba2Mixer, u: Tensor):
    """Give all gate rows the direction v with u . v as near to OPEN_GATE as least squares can: there is no bias."""
    u = u.flatten(0, 1).float()
    v = solve_ridge(u.T @ u, u.sum(0) * OPEN_GATE)
    mixer.in_proj.weight[: mixer.d_inner] = v


def calibrate_scale(mixer: Mamba2Mixer, u: Tensor, target: Tensor) -> float:
    """Set norm.weight so that the mixer's output fits `target` best; returns the relative squared error."""
    normed = mixer.norm.normalize(*mixer.scan(u)).flatten(0, 1)  # [tokens, d_inner]
    target = target.flatten(0, 1).float()  # [tokens, hidden]
    out = mixer.out_proj.weight.float()  # [hidden, d_inner]
    # output = sum over channels c of weight[c] * normed[:, c] (x) out[:, c], so both factors' Gram matrices multiply.
    weight = solve_ridge((normed.T @ normed) * (out.T @ out), (normed * (target @ out)).sum(0))
    mixer.norm.weight.copy_(weight)
    fitted = (normed * weight) @ out.T
    return ((fitted - target).square().sum() / target.square().sum()).item()


def solve_ridge(gram: Tensor, right: Tensor, ridge: float = RIDGE) -> Tensor:
    """(gram + ridge * mean diagonal * I)^-1 right, in fp64."""
    gram = gram.double()
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    return torch.linalg.solve(gram, right.double()).to(right.dtype)
