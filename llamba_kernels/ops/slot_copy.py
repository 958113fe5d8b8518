"""Copies slots with everything that all layers keep for them: beams, several samples of one prompt, prefix reuse."""

import torch

from .._load import call, operator


@operator
def slot_copy(cursor, states, kv, src, dst, *, width):
    """Slot dst[i] becomes a copy of slot src[i].

    Args:
        cursor: (nslots, 4 + width-1 + capacity) int32.
        states: list of tensors (nslots, ...) of any dtype: checkpoints, rows, dt_rows of all layers; copied whole.
        kv: list of tensors (nslots, kv_heads, max_tokens, head_dim): only the committed tokens are copied.
        src: (batch) int32, without an open step; a slot may be named several times; < 0 is padding.
        dst: (batch) int32, unique, no slot of src; < 0 exactly where src is. An open step of theirs is forgotten.
        width: int, conv width, 2 to 4.
    Writes: cursor, states and kv, the slots in dst.
    Raises: ValueError (shapes, slots), TypeError (dtypes, devices, strides, overlap). Nothing is written then. On CUDA
        the data of src, dst and cursor is not checked: a dst that is no slot is skipped; a src that is none, has an
        open step or more tokens than a kv leaves its dst broken, refused until reset; a dst named twice, or among src,
        is undefined.
    Devices: CPU, CUDA.
    Source: csrc/slot_copy. Reference: python_ref/slot_copy.py.
    """
    call(torch.ops.llamba.slot_copy.default, cursor, states, kv, src, dst, width)
