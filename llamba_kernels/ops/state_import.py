"""The inverse of materialize: a state that was saved, or came from elsewhere, into a slot."""

import torch

from .._load import call, operator


@operator
def state_import(state, tail, checkpoint, rows, cursor, slots):
    """Put states into the checkpoints of slots, and the raw rows before them into their conv tails.

    The cursor comes first: `cursor_reset` with prompt = the state's position, fold_every=1 and max_rollback=0 makes a
    slot whose checkpoint stands at that position, without live rows. One reset serves all layers.

    Args:
        state: (batch, nheads, headdim, dstate) float32; rounded to the dtype of checkpoint. Last stride 1.
        tail: (batch, width - 1, conv_dim), dtype of rows: the raw xBC of the tokens before the position, oldest first;
            what lies before the first token is not read. Last stride 1.
        checkpoint, rows, cursor: as `mamba2_verify`.
        slots: (batch) int32, unique, without open step and live rows; < 0 is padding.
    Writes: checkpoint, and of rows those of the conv tail; for a slot at position 0 nothing.
    Raises: ValueError (shapes, slots), TypeError (dtypes, devices, strides, overlap). Nothing is written then. On CUDA
        the data of slots and cursor is not checked: a slot out of range, with an open step, live rows or a header out
        of bounds is skipped, and so is a row of the conv tail that does not exist.
    Devices: CPU, CUDA.
    Source: csrc/state_import. Reference: python_ref/materialize.py.
    """
    call(torch.ops.llamba.state_import.default, state, tail, checkpoint, rows, cursor, slots)
