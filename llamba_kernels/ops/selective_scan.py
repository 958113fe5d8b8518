"""The selective scan of Mamba-1 over whole sequences, for prefill and training."""

import torch

from .._load import call, operator


@operator
def selective_scan(
    x,
    dt,
    A,
    B,
    C,
    D=None,
    z=None,
    dt_bias=None,
    *,
    B_heads=1,
    C_heads=1,
    dt_softplus=True,
    initial_state=None,
    cu_seqlens=None,
    state_every=None,
    return_final_state=False,
):
    """Run Mamba-1's recurrence, of every channel by itself, over all tokens of every sequence.

        dt    = softplus(dt + dt_bias)
        state = exp(dt A) state + (dt x) B
        y     = (state . C + D x) * silu(z)

    Computed in fp32; y is rounded once. A channel's bits depend on its own inputs alone. No gradient.

    Args:
        x, dt: (batch, L, d_inner) float32, bfloat16 or float16; dt raw. Last stride 1, as of all that follow.
        A: (d_inner, dstate) float32, negative; dstate 1 to 256.
        B: (batch, L, B_heads * dstate), C: (batch, L, C_heads * dstate); dtype of x.
        D: (d_inner) float32 or None: zero.
        z: (batch, L, d_inner), dtype of x, or None: no gate.
        dt_bias: (d_inner) float32 or None: zero.
        B_heads, C_heads: int, divisors of d_inner; channel c reads B head c // (d_inner // B_heads), and so on.
        dt_softplus: bool. False: dt = dt + dt_bias.
        initial_state: (batch, d_inner, dstate) float32, or None: zero. With cu_seqlens one per sequence.
        cu_seqlens: (sequences + 1) int32, ascending from 0 to L, or None. Sequence s of the one batch entry is tokens
            cu_seqlens[s] to cu_seqlens[s + 1] - 1; the state starts anew at each.
        state_every: int k, or None. k: also return the states after tokens k, 2 k, ... of a batch entry, with
            cu_seqlens, too, counted from the entry's first token.
        return_final_state: bool. Also return the state after every sequence's last token.
    Returns: y (batch, L, d_inner), dtype of x; or a tuple of y, then the final state, as initial_state, if asked for,
        then the states (batch, L // k, d_inner, dstate) float32 if asked for.
    Raises: ValueError (shapes, numbers, cu_seqlens), TypeError (dtypes, devices, strides).
    Devices: CPU.
    Source: csrc/selective_scan; recurrence of Mamba (arXiv 2312.00752). Reference: python_ref/selective_scan.py.
    """
    batch, length = x.shape[:1].numel(), x.shape[1:2].numel()  # an x of other dimensions is refused below
    sequences = batch if cu_seqlens is None else max(cu_seqlens.numel() - 1, 0)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final_state = states = None
    if return_final_state:
        final_state = torch.empty((sequences, *A.shape), dtype=torch.float32, device=x.device)
    if state_every is not None:
        shape = (batch, length // max(state_every, 1), *A.shape)
        states = torch.empty(shape, dtype=torch.float32, device=x.device)
    given = (x, dt, A, B, C, D, z, dt_bias, B_heads, C_heads, dt_softplus, initial_state, cu_seqlens, state_every or 0)
    call(torch.ops.llamba.selective_scan.default, *given, y, final_state, states, None)
    results = tuple(each for each in (y, final_state, states) if each is not None)
    return results if len(results) > 1 else y
