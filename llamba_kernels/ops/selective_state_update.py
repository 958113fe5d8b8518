"""The step of a Mamba or Mamba-2 layer on states in slots: reads a state, takes in tokens, writes it back."""

import torch

from .._load import call, operator


@operator
def selective_state_update(
    state,
    x,
    dt,
    A,
    B,
    C,
    D=None,
    z=None,
    dt_bias=None,
    dt_softplus=False,
    state_batch_indices=None,
    *,
    pad_slot_id=-1,
    disable_state_update=False,
    intermediate_states_buffer=None,
    intermediate_state_indices=None,
    dst_state_batch_indices=None,
    cu_seqlens=None,
    num_accepted_tokens=None,
    retrieve_parent_token=None,
    out=None,
):
    """Advance the states of a batch of sequences by their tokens, in place, and return y for each token.

        dt    = softplus(dt + dt_bias)                      softplus if dt_softplus
        state = exp(dt A) state + (dt x) B
        out   = (state . C + D x) * SiLU(z)

    fp32 between the loads and the stores; a window of several tokens rounds the state only where it is stored. With a
    float32 state, tokens in one call give the bits of as many calls. `llamba_kernels.dropins` has the same function
    with the arguments of the packages that others call it from.

    Args:
        state: (nslots, nheads, headdim, dstate), or (nslots, headdim, dstate): one head, as in Mamba-1. float32,
            bfloat16 or float16; dstate up to 256. Last stride 1.
        x: (batch, nheads, headdim), (batch, ntokens, nheads, headdim) or, with cu_seqlens, (total, nheads, headdim);
            without nheads if state has none. float32, bfloat16 or float16. Any strides; so for all below but A.
        dt, z: as x, each float32, bfloat16 or float16 (so for all below). z None: no gate.
        A: (nheads, headdim, dstate) or (headdim, dstate). Last stride 1, or 0: one number for the whole row.
        B, C: as x with (ngroups, dstate) for (nheads, headdim); ngroups divides nheads.
        D, dt_bias: (nheads, headdim) or (headdim), or None.
        state_batch_indices: (batch) or (batch, columns) int32 or int64 (so for all indices): each sequence's slot, in
            the first column. None: sequence i has slot i.
        pad_slot_id: an index that is this, or negative, is padding: it starts at zero and stores no state.
        disable_state_update: state is not written.
        intermediate_states_buffer: (rows, steps, nheads, headdim, dstate), dtype of state: takes the state after each
            token, in row intermediate_state_indices (batch), or the sequence's slot if that is None.
        dst_state_batch_indices: (batch) or (batch, 1): where the last state goes instead; (batch, columns): where the
            state after each token goes.
        cu_seqlens: (batch + 1): sequence i has the tokens cu_seqlens[i] to cu_seqlens[i + 1].
        num_accepted_tokens: (batch): a sequence starts from column max(num_accepted_tokens - 1, 0) of
            state_batch_indices, and each of its tokens stores its state in dst_state_batch_indices (None:
            state_batch_indices).
        retrieve_parent_token: (batch, columns), a tree: token i > 0 starts from the buffer's state after token
            parent < i; if that is negative or not before i, from the state that token i - 1 left.
        out: as x, x's dtype, may be x or z; or None: a new tensor. Tokens of no sequence are not written (new: zero).
    Writes: state, intermediate_states_buffer, out.
    Returns: out.
    Raises: ValueError (shapes, numbers, indices), TypeError (dtypes, devices, strides). Nothing is written then.
    Devices: CPU, CUDA. There an index out of range is padding, and slots that two sequences share are undefined.
    Source: csrc/selective_state_update; recurrence of Mamba (arXiv 2312.00752) and Mamba-2 (arXiv 2405.21060).
    Reference: python_ref/selective_state_update.py.
    """
    if out is None:
        out = torch.empty_like(x) if cu_seqlens is None else torch.zeros_like(x)
    call(
        torch.ops.llamba.selective_state_update.default,
        *(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, pad_slot_id, disable_state_update),
        *(intermediate_states_buffer, intermediate_state_indices, dst_state_batch_indices, cu_seqlens),
        *(num_accepted_tokens, retrieve_parent_token, out),
    )
    return out
