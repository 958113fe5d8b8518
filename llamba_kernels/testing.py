"""Inputs, and a formula to compare with, that tests and benchmarks share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .cache import Cursor, Session
from .ops import mamba2_verify


@dataclass
class Mamba2Layer:
    """A random Mamba-2 layer with its buffers and a cursor of its own: what mamba2_verify is called with."""

    parameters: dict  # conv_weight, conv_bias, A, D, dt_bias
    checkpoint: Tensor
    rows: Tensor
    dt_rows: Tensor
    cursor: Cursor
    heads: dict  # x_heads, B_heads, C_heads
    algorithm: str = "auto"

    @property
    def nheads(self) -> int:
        return self.checkpoint.shape[1]

    @property
    def conv_dim(self) -> int:
        return self.rows.shape[-1]

    def arguments(self, xBC: Tensor, dt: Tensor, slots: Tensor) -> tuple:
        """The positional arguments of mamba2_verify and of its reference."""
        return (xBC, dt, *self.parameters.values(), self.checkpoint, self.rows, self.dt_rows, self.cursor.table, slots)

    def verify(
        self, xBC: Tensor, dt: Tensor, slots: Tensor, out: Tensor | None = None, parents: Tensor | None = None
    ) -> Tensor:
        options = dict(fold_every=self.cursor.session.fold_every, algorithm=self.algorithm, parents=parents, out=out)
        return mamba2_verify(*self.arguments(xBC, dt, slots), **self.heads, **options)

    def tokens(self, *shape: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random raw xBC and dt of shape (*shape, conv_dim) and (*shape, nheads)."""
        dtype = self.rows.dtype
        return (
            torch.randn(*shape, self.conv_dim, generator=generator).to(dtype),
            torch.randn(*shape, self.nheads, generator=generator).to(dtype),
        )


def make_mamba2_layer(
    nslots=2,
    nheads=4,
    headdim=64,
    dstate=64,
    x_heads=None,
    B_heads=1,
    C_heads=1,
    dtype=torch.float32,
    checkpoint_dtype=torch.float32,
    bias=True,
    session: Session | None = None,
    generator: torch.Generator | None = None,
) -> Mamba2Layer:
    """Parameters as in trained models: A in [-16, -1], dt around 0.001 to 0.1 after softplus. Buffers hold NaN."""
    session = session or Session()
    x_heads = x_heads or nheads
    conv_dim = x_heads * headdim + (B_heads + C_heads) * dstate
    random = partial(torch.rand, generator=generator)
    parameters = {
        "conv_weight": (random(conv_dim, session.width) - 0.5).to(dtype),
        "conv_bias": (random(conv_dim) - 0.5).to(dtype) if bias else None,
        "A": -1 - 15 * random(nheads),
        "D": random(nheads) if bias else None,
        "dt_bias": -7 + 5 * random(nheads) if bias else None,
    }
    heads = {"x_heads": x_heads, "B_heads": B_heads, "C_heads": C_heads}
    nan = float("nan")
    return Mamba2Layer(
        parameters=parameters,
        checkpoint=torch.full((nslots, nheads, headdim, dstate), nan, dtype=checkpoint_dtype),
        rows=torch.full((nslots, session.capacity, conv_dim), nan, dtype=dtype),
        dt_rows=torch.full((nslots, session.capacity, nheads), nan, dtype=dtype),
        cursor=Cursor(nslots, session),
        heads=heads,
    )


def make_gated_rms_norm_inputs(shape, width, group_size=None, gate=True, dtype=torch.float32):
    """Positional arguments of gated_rms_norm; x and z are (*shape, width)."""
    x = torch.randn(*shape, width).to(dtype)
    z = torch.randn(*shape, width).to(dtype) if gate else None
    weight = (1 + 0.1 * torch.randn(width)).to(dtype)
    return x, z, weight, 1e-5, group_size or width


def gated_rms_norm_formula(x, z, weight, eps, group_size):
    """gated_rms_norm in torch: fp32, rounded once, as the operator."""
    v = x.float() if z is None else x.float() * torch.nn.functional.silu(z.float())
    groups = v.unflatten(-1, (-1, group_size))
    normed = groups * torch.rsqrt(groups.pow(2).mean(-1, keepdim=True) + eps)
    return (normed.flatten(-2) * weight.float()).to(x.dtype)


def make_attention_step_inputs(
    positions, ntokens, nheads=4, kv_heads=2, head_dim=64, max_window=None, tree=False, dtype=torch.float32
):
    """The arguments of attention_step by name: one sequence per position, in slots of an order of their own.

    Between the sequences' slots lie bystanders; what must not be read is NaN, or no token.
    """
    batch, max_window = len(positions), max_window or max(ntokens)
    max_tokens = max(p + n for p, n in zip(positions, ntokens, strict=True)) + 3

    def random(*shape):
        return torch.randn(shape).to(dtype)

    inputs = {
        "q": 2 * random(batch, max_window, nheads, head_dim),
        "k": random(batch, max_window, kv_heads, head_dim),
        "v": random(batch, max_window, kv_heads, head_dim),
        "k_cache": random(2 * batch, kv_heads, max_tokens, head_dim),
        "v_cache": random(2 * batch, kv_heads, max_tokens, head_dim),
        "cursor": torch.zeros(2 * batch, 11, dtype=torch.int32),
        "slots": (1 + 2 * torch.randperm(batch)).int(),
        "parents": None,
    }
    if tree:
        inputs["parents"] = (torch.rand(batch, max_window) * (1 + torch.arange(max_window))).int() - 1
    for b, slot in enumerate(inputs["slots"].tolist()):
        inputs["cursor"][slot, [0, 3]] = torch.tensor([positions[b], ntokens[b]], dtype=torch.int32)
        for cache in ("k_cache", "v_cache"):
            inputs[cache][slot, :, positions[b] :] = float("nan")
        for new in ("q", "k", "v"):
            inputs[new][b, ntokens[b] :] = float("nan")
        if tree:
            inputs["parents"][b, ntokens[b] :] = 99
    return inputs


def attention_step_formula(q, k, v, k_cache, v_cache, cursor, slots, parents=None, sliding_window=0):
    """attention_step in torch: one masked attention per sequence, by the formula in the inputs' dtype."""
    out = torch.zeros_like(q)
    for b, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        position, _, _, ntokens = cursor[slot, :4].tolist()
        past, new = slice(position), slice(position, position + ntokens)
        k_cache[slot, :, new], v_cache[slot, :, new] = k[b, :ntokens].transpose(0, 1), v[b, :ntokens].transpose(0, 1)
        seen = torch.ones(ntokens, position + ntokens, dtype=torch.bool)
        seen[:, new] = torch.eye(ntokens, dtype=torch.bool)
        for t in range(1, ntokens):
            parent = t - 1 if parents is None else int(parents[b, t])
            if parent >= 0:
                seen[t, new] |= seen[parent, new]
        seen[:, past] = True
        if sliding_window:  # of what a token sees, the last ones: position + depth is as good as a place
            seen &= seen.flip(-1).cumsum(-1).flip(-1) <= sliding_window
        with sdpa_kernel(SDPBackend.MATH):
            out[b, :ntokens] = torch.nn.functional.scaled_dot_product_attention(
                q[b : b + 1, :ntokens].transpose(1, 2),
                k_cache[slot : slot + 1, :, : position + ntokens],
                v_cache[slot : slot + 1, :, : position + ntokens],
                attn_mask=seen,
                enable_gqa=True,
            )[0].transpose(0, 1)
    return out


def make_kv_compact_inputs(positions, ntokens, nlayers=3, kv_heads=2, head_dim=16, dtype=torch.float32):
    """The arguments of kv_compact by name: a random path of random length through each sequence's open step."""
    batch, max_window, max_tokens = len(positions), max(ntokens), max(positions) + max(ntokens)
    cursor, slots = torch.zeros(2 * batch, 11, dtype=torch.int32), (1 + 2 * torch.randperm(batch)).int()
    accepted, path = torch.zeros(batch, dtype=torch.int32), torch.full((batch, max_window), -9, dtype=torch.int32)
    for b, (slot, count) in enumerate(zip(slots.tolist(), ntokens, strict=True)):
        cursor[slot, [0, 3]] = torch.tensor([positions[b], count], dtype=torch.int32)
        accepted[b] = torch.randint(count + 1, ())
        path[b, : accepted[b]] = torch.randperm(count)[: accepted[b]].sort().values.int()
    caches = torch.randn(2, nlayers, 2 * batch, kv_heads, max_tokens, head_dim).to(dtype)
    return {
        "k_caches": list(caches[0]),
        "v_caches": list(caches[1]),
        "cursor": cursor,
        "slots": slots,
        "accepted": accepted,
        "path": path,
    }


def make_rms_norm_inputs(shape, width, residual=False, dtype=torch.float32):
    """Positional arguments of rms_norm; x is (*shape, width)."""
    x = torch.randn(*shape, width).to(dtype)
    weight = (1 + 0.1 * torch.randn(width)).to(dtype)
    return x, weight, 1e-5, torch.randn(*shape, width).to(dtype) if residual else None


def rms_norm_formula(x, weight, eps, residual=None):
    """rms_norm in torch: fp32, rounded once, as the operator; a new residual is not kept."""
    v = (x if residual is None else residual + x).float()
    return (v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def make_rope_inputs(batch, ntokens, nheads, head_dim, rotary_dim, npositions, dtype=torch.float32):
    """Positional arguments of rope; angles as Llama's."""
    x = torch.randn(batch, ntokens, nheads, head_dim).to(dtype)
    frequencies = 10000.0 ** (-torch.arange(rotary_dim // 2) / max(rotary_dim // 2, 1))
    angles = torch.arange(npositions)[:, None] * frequencies
    positions = torch.randint(npositions, (batch, ntokens), dtype=torch.int32)
    return x, angles.cos(), angles.sin(), positions


def rope_formula(x, cos, sin, positions, interleaved=False):
    """rope in torch: fp32, rounded once, as the operator; no padding."""
    half = cos.shape[1]
    cos, sin = (table[positions].unsqueeze(2) for table in (cos, sin))
    wide, rest = x[..., : 2 * half].float(), x[..., 2 * half :]
    a, b = (wide[..., ::2], wide[..., 1::2]) if interleaved else (wide[..., :half], wide[..., half:])
    turned = a * cos - b * sin, a * sin + b * cos
    rotated = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat([rotated.to(x.dtype), rest], -1)


def make_silu_mul_inputs(shape, width, dtype=torch.float32):
    """gate and up, each (*shape, width)."""
    return (2 * torch.randn(*shape, width)).to(dtype), torch.randn(*shape, width).to(dtype)


def silu_mul_formula(gate, up):
    """silu_mul in torch: fp32, rounded once, as the operator."""
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate.dtype)


def make_skinny_linear_inputs(shape, in_features, out_features, bias=True, dtype=torch.float32):
    """Positional arguments of skinny_linear; x is (*shape, in_features)."""
    x = torch.randn(*shape, in_features).to(dtype)
    weight = (torch.randn(out_features, in_features) / max(in_features, 1) ** 0.5).to(dtype)
    return x, weight, torch.randn(out_features).to(dtype) if bias else None


def make_argmax_inputs(shape, vocab, dtype=torch.float32):
    """Positional arguments of argmax."""
    return (torch.randn(*shape, vocab).to(dtype),)


def make_speculative_accept_inputs(batch, max_window, vocab, sampled=True, certain=False, dtype=torch.float32):
    """Positional arguments of speculative_accept: drafts from a q near p, ragged windows, and traps beyond them.

    certain: drafts without probabilities. What must not be read is NaN, or no token id.
    """
    logits = (2 * torch.randn(batch, max_window, vocab)).to(dtype)
    ntokens = torch.randint(1, max_window + 1, (batch,), dtype=torch.int32)
    draft_probs = torch.softmax(logits[:, :-1].float() + 0.5 * torch.randn(batch, max_window - 1, vocab), dim=-1)
    drafts = torch.zeros(batch, max_window - 1, dtype=torch.int64)
    if max_window > 1:
        drafts = torch.multinomial(draft_probs.flatten(0, 1), 1).view(batch, max_window - 1)
    uniforms = torch.rand(batch, max_window, dtype=torch.float64)
    position = torch.arange(max_window - 1)
    beyond = position >= ntokens[:, None] - 1
    drafts[beyond] = -99
    draft_probs[beyond] = float("nan")
    uniforms[:, :-1][beyond] = float("nan")
    logits[torch.arange(max_window) >= ntokens[:, None]] = float("nan")
    has_probs = sampled and not certain
    return logits, drafts, ntokens, draft_probs if has_probs else None, uniforms if sampled else None, 0.8


class ForcedDraft:
    """A `speculative.Draft` that proposes recorded output, made wrong on purpose: forces what each step accepts.

    Args:
        sequences: what greedy decoding gave, prompts included; a generation's prompt must begin one of them.
        right: how many drafts of a step are right, the others wrong: REJECT_ALL, ACCEPT_ALL or a number for every step,
            or a list that the steps of a generation go through, over and over.
        vocab_size: of the model.
    """

    REJECT_ALL, ACCEPT_ALL = 0, 1 << 20

    def __init__(self, sequences: Sequence[Sequence[int]], right: int | Sequence[int], vocab_size: int):
        self.sequences = [list(sequence) for sequence in sequences]
        self.right = [right] if isinstance(right, int) else list(right)
        self.vocab_size = vocab_size

    def reset(self, prompt: Sequence[int]) -> None:
        prompt = list(prompt)
        found = [each for each in self.sequences if each[: len(prompt)] == prompt]
        if not found:
            raise ValueError(f"ForcedDraft: sequences must hold one that begins with the prompt; got {prompt}")
        self.sequence, self.known, self.steps = found[0], len(prompt), 0

    def extend(self, tokens: Sequence[int]) -> None:
        self.known += len(tokens)

    def propose(self, most: int) -> list[int]:
        right = self.right[self.steps % len(self.right)]
        self.steps += 1
        recorded = self.sequence[self.known : self.known + most]
        return [token if i < right else (token + 1) % self.vocab_size for i, token in enumerate(recorded)]
