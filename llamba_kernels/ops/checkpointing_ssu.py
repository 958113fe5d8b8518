"""Drop-in for FlashInfer's function of this name: a window verified from an old state and a ring of inputs."""

import torch

from .._load import call, operator


@operator
def checkpointing_ssu(
    state,
    x_cache,
    B_cache,
    dt_cache,
    ring_start,
    prev_num_accepted_tokens,
    x,
    dt,
    A,
    B,
    C,
    out=None,
    D=None,
    z=None,
    dt_bias=None,
    dt_softplus=False,
    state_batch_indices=None,
    pad_slot_id=-1,
    state_scale=None,
    rand_seed=None,
    philox_rounds=10,
    d_split=None,
    cu_seqlens=None,
    max_seqlen=None,
    enable_pdl=False,
    cb_scaled=None,
    cumAdt_vec=None,
    cb_old=None,
    precompute_heads_per_cta=0,
    algorithm="auto",
):
    """Run a window of tokens from each slot's state and the inputs since, in its rings; append the window to these.

        dt    = softplus(dt + dt_bias)
        state = exp(dt A) state + (dt x) B
        out   = (state . C + D x) SiLU(z)

    The state of slot s is that before the prev_num_accepted_tokens[s] inputs in rows ring_start[s], ring_start[s] + 1,
    ... of its rings, modulo their R rows. The window goes to the rows after them. With W = R - tokens of x (or
    max_seqlen): if prev_num_accepted_tokens + tokens > W, the state first moves past those inputs and is stored, never
    past the window. Both cursors are the caller's to advance, once the number of accepted tokens is known: after a
    store, ring_start by what prev_num_accepted_tokens was, which becomes the accepted number; else
    prev_num_accepted_tokens by the accepted number.

    The inputs are replayed in order by the very step that new tokens take, in fp32 between load and store. With a
    float32 state a token's bits depend on its sequence's tokens alone: not on the window, W, where the ring starts,
    when the state was stored or the batch. A 16-bit state is rounded when it is stored, and the window goes on from the
    rounded one.

    Args:
        state: (nslots, nheads, headdim, dstate) float32, bfloat16 or float16; dstate a multiple of 16 up to 256.
        x_cache: (nslots, nheads, R, headdim), B_cache: (nslots, ngroups, R, dstate); dtype of x. dt_cache: (nslots,
            nheads, R) float32: after bias and softplus. Rows that the cursors do not name may hold anything.
        ring_start, prev_num_accepted_tokens: (nslots) int32; prev_num_accepted_tokens at most R - tokens.
        x: (batch, tokens, nheads, headdim) float32, bfloat16 or float16. Its last stride is 1, like those of state,
            x_cache, B_cache, B, C, z and out; any other strides.
        dt: (batch, tokens, nheads, headdim), A: (nheads, headdim, dstate), dt_bias: (nheads, headdim) or None: one
            number of a head repeated, with stride 0; float32, bfloat16 or float16, each.
        B, C: (batch, tokens, ngroups, dstate), dtype of x; ngroups divides nheads.
        out: as x, or None: a new tensor.
        D: (nheads, headdim) float32, bfloat16 or float16, or None. z: as x, or None: no gate.
        state_batch_indices: (batch) int32 or int64, unique, or None: slots 0, 1, 2, ... Slots < 0 or equal to
            pad_slot_id are padding.
        cu_seqlens: (sequences + 1) int32, not descending: x, dt, B, C, z and out have batch 1, and sequence i has
            tokens [i] to [i + 1], at most max_seqlen, an int that is then needed; or None.
        state_scale, rand_seed: None: 8-bit states and stochastic rounding are not run.
        philox_rounds, d_split, enable_pdl, cb_scaled, cumAdt_vec, cb_old, precompute_heads_per_cta, algorithm: of
            FlashInfer's kernels; accepted, and not used.
    Writes: out (padding: zero), the window's rows of the rings, state (of slots that store it). A sequence without
        tokens is left alone.
    Returns: out.
    Raises: ValueError (shapes, numbers, slots), TypeError (dtypes, devices, strides, overlap). Nothing is written then.
    Devices: CPU, CUDA. There nothing that lies in device memory is refused: a sequence of which a number does not fit
        is padding.
    Source: csrc/checkpointing_ssu. Reference: python_ref/checkpointing_ssu.py.
    """
    for name, value, what in (
        ("state_scale", state_scale, "8-bit states are not run"),
        ("rand_seed", rand_seed, "stochastic rounding is not run"),
    ):
        if value is not None:
            raise ValueError(f"checkpointing_ssu: {name} must be None ({what}); got {type(value).__name__}")
    if algorithm not in ("auto", "monolith", "two-kernel"):
        raise ValueError(f"checkpointing_ssu: algorithm must be auto, monolith or two-kernel; got {algorithm!r}")
    if (cu_seqlens is None) != (max_seqlen is None):
        got = "none" if cu_seqlens is None else "one"
        raise ValueError(f"checkpointing_ssu: max_seqlen must be given exactly if cu_seqlens is; got {got} of these")
    sizes = (*x.shape[:3], *state.shape[1:])
    if len(sizes) == 6:  # other ranks are refused below
        batch, tokens, nheads, _, headdim, dstate = sizes
        dt = _of_each_head("dt", dt, (batch, tokens, nheads, headdim), 3)
        A = _of_each_head("A", A, (nheads, headdim, dstate), 1)
        dt_bias = dt_bias if dt_bias is None else _of_each_head("dt_bias", dt_bias, (nheads, headdim), 1)
    if out is None:
        empty = torch.empty if cu_seqlens is None else torch.zeros
        out = empty(x.shape, dtype=x.dtype, device=x.device)
    call(
        torch.ops.llamba.checkpointing_ssu.default,
        state,
        x_cache,
        B_cache,
        dt_cache,
        ring_start,
        prev_num_accepted_tokens,
        x,
        dt,
        A,
        B,
        C,
        D,
        z,
        dt_bias,
        dt_softplus,
        state_batch_indices,
        pad_slot_id,
        cu_seqlens,
        0 if max_seqlen is None else max_seqlen,
        out,
    )
    return out


def _of_each_head(name, tensor, shape, first):
    """Without the dimensions from `first` on, over which the numbers must be repeated by strides of 0."""
    if tensor.shape != shape:
        raise ValueError(f"checkpointing_ssu: {name} must have shape {shape}; got {tuple(tensor.shape)}")
    if 0 in shape[first:]:
        raise ValueError(f"checkpointing_ssu: {name} must have a number for each head; got shape {shape}")
    for dim in range(first, tensor.dim()):
        if tensor.layout is torch.strided and tensor.shape[dim] > 1 and tensor.stride(dim) != 0:
            raise TypeError(
                f"checkpointing_ssu: {name} must have stride 0 in dimension {dim}, one number of each head repeated; "
                f"got {tensor.stride(dim)}"
            )
    for _ in range(first, tensor.dim()):
        tensor = tensor.select(first, 0)
    return tensor
