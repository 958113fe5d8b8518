"""selective_state_update as mamba_ssm, FlashInfer, vLLM and SGLang call it."""

from . import ops

_ALGORITHMS = ("auto", "simple", "vertical", "horizontal", "async_horizontal")
_BACKENDS = ("auto", "flashinfer", "cake")


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
    pad_slot_id=None,
    state_scale=None,
    out=None,
    disable_state_update=False,
    intermediate_states_buffer=None,
    intermediate_state_indices=None,
    intermediate_state_scales=None,
    rand_seed=None,
    philox_rounds=10,
    cache_steps=0,
    algorithm="auto",
    dst_state_batch_indices=None,
    cu_seqlens=None,
    num_accepted_tokens=None,
    backend="auto",
    retrieve_parent_token=None,
    null_block_id=None,
    is_blackwell=False,
    enable_stochastic_rounding=False,
    cache_philox_rounds=0,
):
    """`ops.selective_state_update` with the arguments of mamba_ssm (the first eleven), FlashInfer, vLLM and SGLang.

    What `ops.selective_state_update` says of its arguments holds. Beyond it:

    Args:
        pad_slot_id: None: -1. null_block_id: another name of it.
        cache_steps: the most tokens of a sequence, or 0 or None: whatever x and cu_seqlens say. Not read otherwise.
        algorithm, backend: names that FlashInfer knows; here they choose nothing.
        is_blackwell: not read. philox_rounds, cache_philox_rounds: not read, because:
        state_scale, intermediate_state_scales (states of 8 or 16 bit integers and fp8), rand_seed and
            enable_stochastic_rounding (stochastic rounding) are refused.
    Returns: out; a new tensor if None.
    Raises: as `ops.selective_state_update`.
    """
    for name, value in (("state_scale", state_scale), ("intermediate_state_scales", intermediate_state_scales)):
        if value is not None:
            raise ValueError(
                f"selective_state_update: {name} must be None, because states with scales are not supported (float32, "
                f"bfloat16 and float16 are); got {type(value).__name__}"
            )
    if rand_seed is not None or enable_stochastic_rounding:
        name, value = ("rand_seed", "one") if rand_seed is not None else ("enable_stochastic_rounding", "True")
        rule = "None" if rand_seed is not None else "False"
        raise ValueError(
            f"selective_state_update: {name} must be {rule}, because states are rounded to nearest even; got {value}"
        )
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"selective_state_update: algorithm must be one of {_ALGORITHMS}; got {algorithm!r}")
    if backend not in _BACKENDS:
        raise ValueError(f"selective_state_update: backend must be one of {_BACKENDS}; got {backend!r}")
    if pad_slot_id is not None and null_block_id is not None and pad_slot_id != null_block_id:
        raise ValueError(
            f"selective_state_update: null_block_id must be pad_slot_id = {pad_slot_id} if both are given; got "
            f"{null_block_id}"
        )
    if pad_slot_id is None:
        pad_slot_id = -1 if null_block_id is None else null_block_id
    if cache_steps and cu_seqlens is None and x.dim() == 4 and x.shape[1] > cache_steps:
        raise ValueError(
            f"selective_state_update: cache_steps must be 0 or at least the {x.shape[1]} tokens of x; got {cache_steps}"
        )
    return ops.selective_state_update(
        *(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices),
        pad_slot_id=pad_slot_id,
        disable_state_update=disable_state_update,
        intermediate_states_buffer=intermediate_states_buffer,
        intermediate_state_indices=intermediate_state_indices,
        dst_state_batch_indices=dst_state_batch_indices,
        cu_seqlens=cu_seqlens,
        num_accepted_tokens=num_accepted_tokens,
        retrieve_parent_token=retrieve_parent_token,
        out=out,
    )
