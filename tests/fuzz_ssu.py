"""For tests/fuzz.py: selective_state_update in all of its modes."""

import torch
from fuzz_arguments import is_plain
from fuzz_case import FLOATING, NAN, ROUNDING, Op, require, stored
from ssu_cases import make_inputs

from python_ref.selective_state_update import selective_state_update_ref

INDICES = ("state_batch_indices", "intermediate_state_indices", "dst_state_batch_indices", "cu_seqlens")
INDICES += ("num_accepted_tokens", "retrieve_parent_token")


def draw_ssu(draw):
    nheads, batch, nslots = draw.choice((None, 1, 2, 4)), draw.randint(0, 4), draw.randint(8, 24)
    packed = [draw.randint(0, 3) for _ in range(batch)] if draw.random() < 0.3 else None
    ntokens = None if packed is not None or draw.random() < 0.5 else draw.randint(0, 4)
    longest = max(packed, default=0) if packed is not None else ntokens if ntokens is not None else 1
    a = make_inputs(
        batch=batch,
        nheads=nheads,
        ngroups=draw.choice([n for n in (1, 2, 4) if (nheads or 1) % n == 0]),
        headdim=draw.size(1, 33),
        dstate=draw.choice((1, 7, 16, 17, 64, 250, 256)),
        ntokens=ntokens,
        packed=packed,
        nslots=nslots,
        gate=draw.random() < 0.5,
        bias=draw.random() < 0.5,
        **{name: draw.choice(FLOATING) for name in ("dtype", "state_dtype", "dt_dtype", "group_dtype")},
        parameter_dtype=draw.choice(FLOATING),
    )
    slots, kind = draw.sample(range(nslots), nslots), draw.choice((torch.int32, torch.int64))
    a |= dict(dt_softplus=draw.random() < 0.7, pad_slot_id=draw.choice((-1, -1, 0, 99)), **dict.fromkeys(INDICES[:3]))
    a |= dict(disable_state_update=draw.random() < 0.2, num_accepted_tokens=None, retrieve_parent_token=None)
    a |= dict(cu_seqlens=a.get("cu_seqlens"), intermediate_states_buffer=None)
    columns = max(longest, 1)
    mode = draw.choice(("plain", "slots", "slots", "last", "each", "accepted", "buffer", "tree"))
    if mode == "accepted" and batch * columns * 2 <= nslots:
        a["state_batch_indices"] = torch.tensor(slots[: batch * columns], dtype=kind).view(batch, columns)
        a["num_accepted_tokens"] = torch.tensor([draw.randint(0, columns) for _ in range(batch)], dtype=kind)
        a["dst_state_batch_indices"] = draw.maybe(padded(draw, slots[batch * columns :], (batch, columns), kind))
    elif mode != "plain":
        a["state_batch_indices"] = padded(draw, slots, (batch, 1) if draw.random() < 0.3 else (batch,), kind)
    if mode == "last":
        a["dst_state_batch_indices"] = padded(draw, slots[batch:], (batch,), kind)
    if mode == "each" and batch * (columns + 1) <= nslots:
        a["dst_state_batch_indices"] = padded(draw, slots[batch:], (batch, columns), kind)
    if mode in ("buffer", "tree"):
        buffer = torch.full((nslots, columns, *a["state"].shape[1:]), NAN, dtype=a["state"].dtype)
        a["intermediate_states_buffer"] = buffer
        a["intermediate_state_indices"] = draw.maybe(torch.tensor(slots[::-1][:batch], dtype=torch.int64))
    if mode == "tree":
        a["retrieve_parent_token"] = torch.randint(-2, columns + 1, (batch, columns), dtype=kind)
    a["out"] = draw.maybe(torch.full(a["x"].shape, NAN, dtype=a["x"].dtype))
    return a


def padded(draw, slots, shape, kind):
    """The first slots, some of them padding."""
    count = torch.Size(shape).numel()
    return torch.tensor([-1 if draw.random() < 0.2 else slot for slot in slots[:count]], dtype=kind).view(shape)


def tie(arguments, draw):
    """One A for each head, or for each row."""
    A = arguments["A"]
    if not is_plain(A) or A.dim() < 2 or not A.numel():
        return None
    A = A[..., :1] if draw.random() < 0.5 else A[..., :1, :1]
    arguments["A"] = A.expand(arguments["A"].shape)
    return "A tied"


def expect_ssu(out, **a):
    """A token adds some roundings to sums of absolute values, and those of its exponents, relative to their size."""
    x, state, z, D = (a[name] for name in ("x", "state", "z", "D"))
    floats = [a[name] for name in ("state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias") if a[name] is not None]
    require(all(t.dtype in FLOATING for t in floats), "floats of three dtypes")
    require(all(a[n] is None or a[n].dtype in (torch.int32, torch.int64) for n in INDICES), "indices of two dtypes")
    shapes = [a["dt"].shape, *(t.shape for t in (z, out) if t is not None)]
    require(all(shape == x.shape for shape in shapes) and a["A"].shape == state.shape[1:], "shapes")
    require(all(a[name] is None or a[name].shape == state.shape[1:-1] for name in ("D", "dt_bias")), "shapes")

    def run(**change):
        """out, state and buffer, none of them rounded."""
        given = a | change
        for name in ("state", "intermediate_states_buffer"):
            given[name] = None if given[name] is None else given[name].double().clone()
        return selective_state_update_ref(**given), given["state"], given["intermediate_states_buffer"]

    dt = a["dt"].double() + (0 if a["dt_bias"] is None else a["dt_bias"].double())
    dt = torch.nn.functional.softplus(dt) if a["dt_softplus"] else dt
    exponents = dt[..., None] * a["A"].double()
    size = exponents.abs().nan_to_num().amax().item() if exponents.numel() else 0.0
    too_large = bool((exponents > 80).any())  # e^88 is the largest number
    tokens = x.shape[0] if a["cu_seqlens"] is not None else x.shape[1] if x.dim() == state.dim() else 1
    units = (8 + 8 * size) * (tokens + 1) * ROUNDING + state.shape[-1] * ROUNDING
    if a["retrieve_parent_token"] is not None:
        units += torch.finfo(state.dtype).eps  # a state that was rounded to the other side and read again
    units = torch.inf if too_large else units
    values, after, buffer = run()
    absolute = {n: a[n].abs() for n in ("state", "B", "C")} | dict(x=x.double().abs() * dt.sign(), D=None, z=None)
    sums, sums_after, sums_buffer = run(**absolute)
    if a["retrieve_parent_token"] is not None and bool((sums_buffer > torch.finfo(state.dtype).max / 2).any()):
        units = torch.inf
    sums = sums + (0 if D is None else (D.double() * x.double()).abs())
    sums = sums if z is None else sums * torch.nn.functional.silu(z.double()).abs()
    # where a state is stored: ones that decay
    flat = {n: torch.zeros_like(a[n]) for n in ("x", "B", "C")} | dict(z=None, D=None, dt_bias=None, dt_softplus=False)
    marks = dict(state=torch.ones_like(state), dt=torch.ones_like(x), A=torch.full_like(a["A"], -1.0))
    empty = None if buffer is None else torch.zeros_like(buffer)
    _, marked, marked_buffer = run(**flat, **marks, intermediate_states_buffer=empty)
    result = {"out": (values, units * sums + stored(values, x.dtype))}
    if a["cu_seqlens"] is not None and out is not None:
        ends = a["cu_seqlens"]
        for outside in (slice(0, int(ends[0])), slice(int(ends[-1]), None)):
            values[outside], result["out"][1][outside] = out[outside].double(), 0.0
    error = units * sums_after + stored(after, state.dtype)
    result["state"] = (after, error.where(marked != 1, 0.0))
    if buffer is not None:
        error = units * sums_buffer + stored(buffer, state.dtype)
        result["intermediate_states_buffer"] = (buffer, error.where(marked_buffer != 0, 0.0))
    return result


SSU = Op(
    "selective_state_update",
    draw_ssu,
    expect_ssu,
    ("state", "intermediate_states_buffer", "out"),
    ("out",),
    any_strides=("x", "dt", "B", "C", "D", "z", "dt_bias", "out", *INDICES),
    in_place=("x", "z"),
    mutations=(tie,),
)
