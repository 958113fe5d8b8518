"""The baseline that stores a full state per drafted token, as vLLM and SGLang verify: a Triton kernel of our own.

Sequence b starts from state[source[b]] and leaves the state after token t in state[target[b, t]]; the next step starts
from the slot of the last accepted token, so nothing is replayed and ntokens + 1 states move. No convolution.
"""

import triton
import triton.language as tl

TILES = ((4, 4), (16, 4), (32, 4))  # state rows of a program, warps: the benchmark takes the fastest


@triton.jit
def snapshot_kernel(
    state,
    source,
    target,
    x,
    dt,
    A,
    B,
    C,
    D,
    dt_bias,
    out,
    nheads,
    headdim,
    ngroups,
    NTOKENS: tl.constexpr,
    DSTATE: tl.constexpr,
    ROWS: tl.constexpr,
):
    sequence, head = tl.program_id(1), tl.program_id(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, DSTATE)
    inside = row < headdim
    group = head // (nheads // ngroups)
    tile = (head * headdim + row)[:, None] * DSTATE + column[None, :]
    slot_size = nheads * headdim * DSTATE
    first = tl.load(source + sequence).to(tl.int64) * slot_size  # a pool has more than 2^31 elements
    current = tl.load(state + first + tile, mask=inside[:, None], other=0.0).to(tl.float32)
    A_head, D_head, bias = tl.load(A + head), tl.load(D + head), tl.load(dt_bias + head)
    for t in range(NTOKENS):
        token = sequence * NTOKENS + t
        step = tl.load(dt + token * nheads + head).to(tl.float32) + bias
        step = tl.where(step <= 20.0, tl.log(1.0 + tl.exp(step)), step)
        x_token = tl.load(x + (token * nheads + head) * headdim + row, mask=inside, other=0.0).to(tl.float32)
        B_token = tl.load(B + (token * ngroups + group) * DSTATE + column).to(tl.float32)
        C_token = tl.load(C + (token * ngroups + group) * DSTATE + column).to(tl.float32)
        current = current * tl.exp(step * A_head) + (step * x_token)[:, None] * B_token[None, :]
        y = tl.sum(current * C_token[None, :], axis=1) + D_head * x_token
        tl.store(out + (token * nheads + head) * headdim + row, y, mask=inside)
        slot = tl.load(target + token).to(tl.int64) * slot_size
        tl.store(state + slot + tile, current, mask=inside[:, None])


def snapshot_verify(state, source, target, x, dt, A, B, C, D, dt_bias, out, tile=TILES[1]):
    """One launch. All tensors contiguous, dstate a power of two.

    Args:
        state: (nslots, nheads, headdim, dstate). source: (batch), target: (batch, ntokens), int32 slots.
        x, out: (batch, ntokens, nheads, headdim), dt: (batch, ntokens, nheads), B, C: (batch, ntokens, ngroups,
            dstate), after the convolution. A, D, dt_bias: (nheads) float32.
    """
    batch, ntokens, nheads, headdim = x.shape
    rows, warps = tile
    snapshot_kernel[(triton.cdiv(headdim, rows), batch, nheads)](
        state,
        source,
        target,
        x,
        dt,
        A,
        B,
        C,
        D,
        dt_bias,
        out,
        nheads,
        headdim,
        B.shape[2],
        NTOKENS=ntokens,
        DSTATE=state.shape[3],
        ROWS=rows,
        num_warps=warps,
    )
    return out
