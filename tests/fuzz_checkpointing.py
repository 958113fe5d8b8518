"""For tests/fuzz.py: checkpointing_ssu."""

import torch
from fuzz_case import FLOATING, NAN, ROUNDING, Op, require, stored

from llamba_kernels import ops
from llamba_kernels.testing_dropins import Ring, make_checkpointing_ssu_parameters, make_checkpointing_ssu_tokens
from python_ref.checkpointing_ssu import checkpointing_ssu_ref

CACHES = ("state", "x_cache", "B_cache", "dt_cache")


def draw_checkpointing_ssu(draw):
    batch, tokens, window = draw.size(0, 3), draw.size(0, 9), draw.size(1, 9)
    ngroups = draw.choice((1, 1, 2))
    layer = ngroups * draw.choice((1, 2)), draw.choice((1, 5, 16, 17, 33)), draw.choice((16, 48, 128)), ngroups
    dtype, nslots = draw.choice(FLOATING), batch + draw.choice((1, 2))
    ring = Ring(nslots, *layer, window, tokens, dtype=dtype, state_dtype=draw.choice(FLOATING))
    a = dict(zip((*CACHES, "ring_start", "prev_num_accepted_tokens"), ring.arguments(), strict=True))
    for slot in range(nslots):
        count = draw.randrange(window + 1)
        rows = (int(ring.ring_start[slot]) + torch.arange(count)) % max(window + tokens, 1)
        for cache in CACHES[1:]:
            values = torch.randn(a[cache][slot].shape).to(a[cache].dtype)
            a[cache][slot][:, rows] = values.abs()[:, rows] if cache == "dt_cache" else values[:, rows]
        ring.previous[slot] = count
    packed = draw.random() < 0.3
    lengths = [draw.randrange(tokens + 1) for _ in range(batch)]
    shape = (1, sum(lengths)) if packed else (batch, tokens)
    a |= make_checkpointing_ssu_tokens(*shape, *layer, draw.random() < 0.5, dtype)
    given = make_checkpointing_ssu_parameters(*layer[:3], draw.choice(FLOATING))
    a |= {name: value for name, value in given.items() if name == "A" or draw.random() < 0.7}
    for name in ("dt", "A", "dt_bias"):  # one number of each head, which embed would repeat in memory
        if name in a:
            a[name] = a[name][(..., *(slice(0, 1),) * (2 if name == "A" else 1))].clone()
    if packed:
        a |= dict(cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(), max_seqlen=tokens)
    if packed or draw.random() < 0.7:
        slots = torch.randperm(nslots)[:batch].to(draw.choice((torch.int32, torch.int64)))
        slots[torch.rand(batch) < 0.2] = -1
        a["state_batch_indices"] = slots
    a |= dict(dt_softplus=draw.random() < 0.7, pad_slot_id=draw.choice((-1, -1, 0)))
    return a | dict(out=draw.maybe(torch.full(a["x"].shape, NAN, dtype=dtype)))


def call_checkpointing_ssu(**a):
    return ops.checkpointing_ssu(**repeated(a))


def repeated(a):
    """dt, A and dt_bias over the dims of a head, by strides of 0."""
    x, state = a["x"], a["state"]
    if not (isinstance(x, torch.Tensor) and isinstance(state, torch.Tensor) and x.dim() == state.dim() == 4):
        return a
    shapes = dict(dt=x.shape, A=state.shape[1:], dt_bias=state.shape[1:3])
    for name, shape in shapes.items():
        value = a.get(name)
        if isinstance(value, torch.Tensor) and value.dim() == len(shape) and value.layout is torch.strided:
            first = 3 if name == "dt" else 1
            if value.shape[:first] == shape[:first] and set(value.shape[first:]) == {1}:
                a = a | {name: value.expand(shape)}
    return a


def expect_checkpointing_ssu(out=None, **a):
    """A sum of dstate products of a state that took a few roundings per token; for 16-bit states one rounding more."""
    a = repeated(a)
    x, state = a["x"], a["state"]
    for tensor in (x, state, a["dt"], a["A"], *(a[n] for n in ("D", "dt_bias") if a.get(n) is not None)):
        require(tensor.dtype in FLOATING, "dtypes")
    same = [a[name] for name in ("x_cache", "B_cache", "B", "C", "z") if a.get(name) is not None]
    require(all(tensor.dtype == x.dtype for tensor in same) and a["dt_cache"].dtype == torch.float32, "dtypes")
    for name, dtypes in (("ring_start", (torch.int32,)), ("prev_num_accepted_tokens", (torch.int32,))):
        require(a[name].dtype in dtypes, "cursors are int32")
    indices, starts = a.get("state_batch_indices"), a.get("cu_seqlens")
    require(indices is None or indices.dtype in (torch.int32, torch.int64), "indices are int32 or int64")
    require(starts is None or starts.dtype == torch.int32, "cu_seqlens are int32")
    require(isinstance(a["dt_softplus"], bool), "dt_softplus is a bool")
    sizes = dict(a) | {cache: a[cache].clone().abs_() for cache in CACHES}
    for name in ("x", "B", "C", "D"):
        sizes[name] = a[name].abs() if a.get(name) is not None else None
    sizes |= dict(z=None)
    if bool((a["dt_cache"] < 0).any()) or not a["dt_softplus"]:  # steps below zero: states that grow, in the bound
        bias = a["dt_bias"].abs() if a.get("dt_bias") is not None else None
        sizes |= dict(dt=a["dt"].abs(), A=a["A"].abs(), dt_bias=bias)
    size = checkpointing_ssu_ref(**sizes)
    value = checkpointing_ssu_ref(**a)
    if a.get("z") is not None:
        size = size * torch.nn.functional.silu(a["z"].double()).abs()
    count = a["x_cache"].shape[2] + 2
    relative = (state.shape[3] + 40 * count) * ROUNDING
    tolerance = relative * size + 16 * ROUNDING * value.abs() + stored(value, x.dtype)
    if state.dtype != torch.float32:  # a sum that lies between two 16-bit numbers may become either
        tolerance = tolerance + torch.finfo(state.dtype).eps * size
    if starts is not None and out is not None:  # tokens of no sequence
        for tokens in (slice(0, int(starts[0])), slice(int(starts[-1]), None)):
            value[:, tokens], tolerance[:, tokens] = out[:, tokens].double(), 0.0
    after = state.double()
    bound = (40 * count * ROUNDING) * sizes["state"].double().abs() + 2 * stored(after, state.dtype)
    unit = 1e-6 * a["dt_cache"].abs() + 1e-7
    return {
        "out": (value, tolerance),
        "state": (state, bound),
        "x_cache": (a["x_cache"], 0.0),
        "B_cache": (a["B_cache"], 0.0),
        "dt_cache": (a["dt_cache"], unit),
    }


CHECKPOINTING_SSU = Op(
    "checkpointing_ssu",
    draw_checkpointing_ssu,
    expect_checkpointing_ssu,
    ("out", *CACHES),
    ("out",),
    any_strides=("dt", "A", "D", "dt_bias", "dt_cache", "state_batch_indices"),
    function=call_checkpointing_ssu,
)
