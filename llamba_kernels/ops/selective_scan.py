"""The selective scan of Mamba-1 over whole sequences, for prefill and training."""

import torch

from .._load import call, operator, register

CHUNK = 64  # LLAMBA_SCAN_CHUNK in csrc/include/llamba.h
register(torch.ops.llamba.selective_scan_backward.default)


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

    Computed in fp32; y is rounded once. A channel's bits depend on its own inputs alone. Gradients of every
    floating-point input, from all that is returned; they do not depend on threads. One differentiation only.

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
    numbers = (B_heads, C_heads, dt_softplus, state_every, return_final_state)
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    if torch.is_grad_enabled() and any(isinstance(each, torch.Tensor) and each.requires_grad for each in tensors):
        results = _SelectiveScan.apply(numbers, cu_seqlens, *tensors)
    else:
        results = _forward(numbers, cu_seqlens, *tensors)
    results = tuple(each for each in results if each is not None)
    return results if len(results) > 1 else results[0]


def _forward(numbers, cu_seqlens, x, dt, A, B, C, D, z, dt_bias, initial_state, chunk_states=None):
    B_heads, C_heads, dt_softplus, state_every, return_final_state = numbers
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
    call(torch.ops.llamba.selective_scan.default, *given, y, final_state, states, chunk_states)
    return y, final_state, states


class _SelectiveScan(torch.autograd.Function):
    """Keeps the state before every CHUNK-th token; the backward goes forward from them again."""

    @staticmethod
    def forward(ctx, numbers, cu_seqlens, x, dt, A, *rest):
        chunks = (max(x.shape[1:2].numel(), 1) - 1) // CHUNK
        shape = (x.shape[:1].numel(), chunks, *A.shape[1:], *A.shape[:1])
        chunk_states = torch.empty(shape, dtype=torch.float32, device=x.device)
        results = _forward(numbers, cu_seqlens, x, dt, A, *rest, chunk_states)
        ctx.numbers = numbers
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(cu_seqlens, chunk_states, x, dt, A, *rest)
        return results

    @staticmethod
    def backward(ctx, *gradients):
        return None, None, *_SelectiveScanBackward.apply(ctx.numbers, *gradients, *ctx.saved_tensors)


class _SelectiveScanBackward(torch.autograd.Function):
    """The gradients of every tensor that was given, whether or not it needs one; None of what was None."""

    @staticmethod
    def forward(ctx, numbers, grad_y, grad_final_state, grad_states, cu_seqlens, chunk_states, *tensors):
        B_heads, C_heads, dt_softplus, state_every, _ = numbers
        *inputs, initial_state = tensors
        if grad_y is None:
            grad_y = torch.zeros_like(inputs[0])
        gradients = [None if each is None else torch.empty(each.shape, dtype=each.dtype) for each in tensors]
        given = (*inputs, B_heads, C_heads, dt_softplus, initial_state, cu_seqlens, state_every or 0, chunk_states)
        outer = (each if each is None else each.contiguous() for each in (grad_y, grad_final_state, grad_states))
        call(torch.ops.llamba.selective_scan_backward.default, *given, *outer, *gradients)
        return tuple(gradients)

    @staticmethod
    def backward(ctx, *gradients):
        raise ValueError(
            "selective_scan: gradients must be differentiated once, because the backward has no backward; got twice"
        )
