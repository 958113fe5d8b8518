"""Drop-in for causal-conv1d's function of this name, with the arguments that vLLM adds, and SGLang's windows."""

import torch

from .._load import call, operator

ACTIVATIONS = {None: False, False: False, True: True, "silu": True, "swish": True}


@operator
def causal_conv1d_update(
    x,
    conv_state,
    weight,
    bias=None,
    activation=None,
    cache_seqlens=None,
    conv_state_indices=None,
    *,
    num_accepted_tokens=None,
    query_start_loc=None,
    max_query_len=-1,
    pad_slot_id=-1,
    null_block_id=None,
    block_idx_last_scheduled_token=None,
    initial_state_idx=None,
    retrieve_parent_token=None,
    intermediate_conv_window=None,
    intermediate_state_indices=None,
    validate_data=False,
    out=None,
):
    """Causal depthwise conv of a few tokens of each sequence, from a state of raw inputs that moves on.

        out[t] = act(bias + sum over j of weight[j] * input[t - (width-1) + j])

    Inputs before token 0 are the state's, kept in one of three ways. Without cache_seqlens and num_accepted_tokens its
    last width-1 columns come before x, and it becomes the last state_len columns of itself followed by x. With
    cache_seqlens it is a ring: token t goes to column (cache_seqlens + t) % state_len, and the width-1 columns before
    come before x. With num_accepted_tokens (vLLM, SGLang) so many tokens of the call before count: columns
    accepted-1 to accepted+width-3 come before x; the last width-2 of them, then x, become columns 0, 1, 2, ...

    A token is rounded to the state's dtype before use, sums are fp32 and rounded once: K tokens in one call, in K calls
    or on a path of a tree have the same bits, whatever the batch, strides and way of keeping the state.

    Args:
        x: (batch, dim) or (batch, dim, seqlen), with query_start_loc (tokens, dim); float32, bfloat16 or float16. Any
            strides, as for all but bias.
        conv_state: (nslots, dim, state_len) float32, bfloat16 or float16, state_len >= width-1; with
            num_accepted_tokens >= width-2 + the tokens of a sequence. vLLM and SGLang, without num_accepted_tokens, use
            the first width-1 columns of a longer state: give those, conv_state[..., : width-1].
        weight: (dim, width) float32, bfloat16 or float16, width 2 to 4. bias: (dim), dtype of weight, or None.
        activation: None, "silu", "swish", or a bool: SiLU.
        cache_seqlens: (batch) int32 or None.
        conv_state_indices: (batch) int32, or (batch, blocks), or None: slots 0, 1, 2, ... A slot < 0 or equal to
            pad_slot_id is padding. No slot is written for two sequences, nor read for another.
        num_accepted_tokens: (batch) int32, >= 1, or None.
        query_start_loc: (batch + 1) int32, not descending: sequence i has tokens [i] to [i + 1] of x; or None.
        max_query_len, validate_data: not needed; all arguments are checked anyway.
        pad_slot_id, null_block_id: int; the latter, if not None, counts for both.
        initial_state_idx, block_idx_last_scheduled_token: (batch) int32 or None: which of a sequence's blocks the state
            is read from, and which it is written to; None: 0.
        retrieve_parent_token: (batch, at least seqlen) int32 or int64, or None: a chain. Token i > 0 follows token
            [i] < i, or the state if that is -1; that of token 0 is not read. The state moves as by a chain. SGLang's
            function writes this one, from retrieve_next_token and retrieve_next_sibling, which are not taken here; nor
            is its num_accept_tokens, another name of num_accepted_tokens.
        intermediate_conv_window: (entries, steps, dim, width-1), dtype of conv_state, or None: receives the inputs
            after each token, for a commit of any prefix or path. intermediate_state_indices: (batch) int32, unique, or
            None: a sequence's entry is its slot.
        out: as x, or None: a new tensor, in the places of no sequence zero. May be x itself, unless there are parents.
    Writes: conv_state, out (padding: zero), intermediate_conv_window. Slots of padding and of sequences without tokens
        are left alone.
    Returns: out.
    Raises: ValueError (shapes, numbers, slots), TypeError (dtypes, devices, overlap). Nothing is written then.
    Devices: CPU, CUDA. There nothing that lies in device memory is refused: a sequence of which a number does not fit
        is padding, a parent that is none is -1, and two that write one slot are undefined.
    Source: csrc/causal_conv1d_update. Reference: python_ref/causal_conv1d_update.py.
    """
    if not isinstance(activation, str | bool | None) or activation not in ACTIVATIONS:
        got = repr(activation) if isinstance(activation, str) else type(activation).__name__
        raise ValueError(f"causal_conv1d_update: activation must be None, silu, swish or a bool; got {got}")
    if not isinstance(null_block_id, int | None):
        got = type(null_block_id).__name__
        raise TypeError(f"causal_conv1d_update: null_block_id must be an int or None; got {got}")
    if out is None:
        empty = torch.empty if query_start_loc is None else torch.zeros
        out = empty(x.shape, dtype=x.dtype, device=x.device)
    call(
        torch.ops.llamba.causal_conv1d_update.default,
        x,
        conv_state,
        weight,
        bias,
        ACTIVATIONS[activation],
        cache_seqlens,
        conv_state_indices,
        num_accepted_tokens,
        query_start_loc,
        pad_slot_id if null_block_id is None else null_block_id,
        block_idx_last_scheduled_token,
        initial_state_idx,
        retrieve_parent_token,
        intermediate_conv_window,
        intermediate_state_indices,
        out,
    )
    return out
