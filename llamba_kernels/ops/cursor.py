"""The cursor: which rows of a slot are conv tail, live or free. Every step is begin, the layers, commit.

A slot is one int32 row of `cursor`, shape (nslots, 4 + width-1 + capacity): position, live, fold, ntokens, then the
row table (conv tail, live rows, free rows, -1); csrc/include/llamba.h describes it. `llamba_kernels.cache.Cursor`
holds one with its constants.
"""

import torch

from .._load import call, operator


@operator
def cursor_reset(cursor, slots, prompt=None, *, width, fold_every=1, max_rollback=0, max_window=1):
    """Make slots fresh, or describe what a prefill has put into them.

    With prompt P the checkpoint stands at f = max(0, (P - max_rollback) // fold_every * fold_every), and physical rows
    0, 1, ... hold the min(width-1, f) raw rows before token f (the conv tail) and then those of tokens f to P-1.

    Args:
        cursor: (nslots, 4 + width-1 + capacity) int32; capacity >= width-1 + fold_every-1 + max_rollback +
            2 * max_window. Last stride 1.
        slots: (batch) int32, unique; < 0 is padding and skipped.
        prompt: (batch) int32, tokens that a prefill has processed, or None: fresh slots.
        width: int, conv width, 2 to 4. fold_every, max_rollback, max_window: int, the session's constants.
    Writes: cursor, the rows in slots.
    Raises: ValueError (shapes, numbers, slots), TypeError (dtypes, devices, strides). Nothing is written then. On CUDA
        the data of slots and prompt is not checked: a negative prompt leaves its slot broken, refused until reset.
    Devices: CPU, CUDA.
    Source: csrc/cursor. Reference: python_ref/cursor.py.
    """
    call(torch.ops.llamba.cursor_reset.default, cursor, slots, prompt, width, fold_every, max_rollback, max_window)


@operator
def cursor_begin(cursor, slots, ntokens, *, width, fold_every=1, max_rollback=0, max_window=1):
    """Open a step of ntokens tokens per slot and set how many live rows it folds into the checkpoint.

    Args:
        cursor, slots, width, fold_every, max_rollback, max_window: as `cursor_reset`.
        ntokens: (batch) int32, 1 to max_window: the pending token and the drafts.
    Writes: cursor, fold and ntokens of the rows in slots.
    Raises: as `cursor_reset`; ValueError too for a slot whose last step never closed: reset it. On CUDA such a slot
        stays broken until reset.
    Devices: CPU, CUDA.
    Source: csrc/cursor. Reference: python_ref/cursor.py.
    """
    call(torch.ops.llamba.cursor_begin.default, cursor, slots, ntokens, width, fold_every, max_rollback, max_window)


@operator
def cursor_commit(cursor, slots, accepted, path=None, *, width):
    """Close the step: `accepted` of its tokens stay, the rest are taken back. No state moves, only row ids.

    Args:
        cursor, slots, width: as `cursor_reset`.
        accepted: (batch) int32, 0 to the step's ntokens; the pending token counts, so rejecting every draft is 1.
        path: (batch, length) int32, last stride 1: the tokens of a tree that stay, from its root to a leaf, ascending;
            the first `accepted` are used (root, 2, 5: accepted 3, path 0 2 5). That each is the next one's parent is
            not checked. None: the first `accepted` tokens.
    Writes: cursor, the rows in slots.
    Raises: as `cursor_reset`; ValueError too for a slot without an open step.
    Devices: CPU, CUDA.
    Source: csrc/cursor. Reference: python_ref/cursor.py.
    """
    call(torch.ops.llamba.cursor_commit.default, cursor, slots, accepted, path, width)


@operator
def cursor_rollback(cursor, slots, n, *, width, fold_every=1, max_rollback=0, max_window=1):
    """Take back the last n committed tokens of each slot, between steps.

    Args:
        cursor, slots, width, fold_every, max_rollback, max_window: as `cursor_reset`.
        n: (batch) int32, 0 to min(max_rollback, live rows): what is in the checkpoint cannot be taken back.
    Writes: cursor, the rows in slots.
    Raises: as `cursor_reset`; ValueError too for a slot with an open step.
    Devices: CPU, CUDA.
    Source: csrc/cursor. Reference: python_ref/cursor.py.
    """
    call(torch.ops.llamba.cursor_rollback.default, cursor, slots, n, width, fold_every, max_rollback, max_window)
