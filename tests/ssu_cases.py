"""Random arguments of selective_state_update, and what its results are compared with."""

import itertools

import torch
from helpers import assert_bitwise, assert_close_to_ref

from llamba_kernels.ops import selective_state_update
from python_ref.selective_state_update import selective_state_update_ref

WRITTEN = ("state", "intermediate_states_buffer")
BASE = dict(
    batch=3,
    nheads=4,
    headdim=20,
    dstate=32,
    ngroups=2,
    ntokens=None,
    nslots=None,
    tied=False,
    gate=True,
    bias=True,
    dtype=torch.float32,
    state_dtype=None,
    dt_dtype=None,
    group_dtype=None,
    parameter_dtype=torch.float32,
)


def make_inputs(**change):
    """The arguments by name. nheads None: a state without heads; ntokens None: one token; packed: sequence lengths.

    state_dtype, dt_dtype, group_dtype (of B and C): dtype if None. As in trained models A is -2 to -1 and dt small.
    """
    packed = change.pop("packed", None)
    s = {**BASE, **change}
    dtype, heads = s["dtype"], [] if s["nheads"] is None else [s["nheads"]]
    tokens = [sum(packed)] if packed is not None else [s["batch"], *([] if s["ntokens"] is None else [s["ntokens"]])]
    slots, headdim, dstate = (
        s["nslots"] or len(range(s["batch"]) if packed is None else packed),
        s["headdim"],
        s["dstate"],
    )

    def group():
        sizes = [s["ngroups"], dstate] if heads else [dstate]
        return torch.randn(*tokens, *sizes).to(s["group_dtype"] or dtype)

    x = torch.randn(*tokens, *heads, headdim).to(dtype)
    if s["tied"]:
        dt = torch.randn(*tokens, *heads).to(s["dt_dtype"] or dtype)[..., None].expand(x.shape)
        A = (-1 - torch.rand(heads))[..., None, None].expand(*heads, headdim, dstate)
        D, dt_bias = (p[..., None].expand(*heads, headdim) for p in (torch.randn(heads), torch.rand(heads) - 4))
    else:
        dt = torch.randn(x.shape).to(s["dt_dtype"] or dtype)
        A = -1 - torch.rand(*heads, headdim, dstate)
        D, dt_bias = torch.randn(*heads, headdim), torch.rand(*heads, headdim) - 4
    if s["parameter_dtype"] is not torch.float32:
        A, D, dt_bias = (p.to(s["parameter_dtype"]) for p in (A, D, dt_bias))
    arguments = dict(
        state=torch.randn(slots, *heads, headdim, dstate).to(s["state_dtype"] or dtype),
        x=x,
        dt=dt,
        A=A,
        B=group(),
        C=group(),
        D=D if s["bias"] else None,
        z=torch.randn(x.shape).to(dtype) if s["gate"] else None,
        dt_bias=dt_bias if s["bias"] else None,
        dt_softplus=True,
    )
    if packed is not None:
        arguments["cu_seqlens"] = torch.tensor([0, *packed]).cumsum(0).int()
    return arguments


def copied(arguments):
    """With states of its own to write."""
    return {n: v.clone() if n in WRITTEN and v is not None else v for n, v in arguments.items()}


def check(arguments, **options):
    """The op against the reference in fp64, no worse than twice the reference in fp32; returns its out.

    A NaN in a state that the reference leaves must have its bits, so fill with it what must not be touched.
    """
    results = []
    ours, given = copied(arguments), arguments.get("out")
    before = copied(arguments)
    out = selective_state_update(**ours, **options)
    assert given is None or out is given
    assert out.shape == arguments["x"].shape and out.dtype == arguments["x"].dtype
    for compute_dtype in (torch.float64, torch.float32):
        theirs = copied({name: value for name, value in arguments.items() if name != "out"})
        value = selective_state_update_ref(**theirs, **options, compute_dtype=compute_dtype)
        results.append((value, theirs))
    (exact, in_fp64), (rounded, in_fp32) = results
    assert_close_to_ref(out, exact, rounded.to(out.dtype))
    for name in WRITTEN:
        if arguments.get(name) is not None:
            untouched = before[name].isnan() & in_fp64[name].isnan()
            assert_bitwise(ours[name][untouched], before[name][untouched])
            written = [each[name].masked_fill(untouched, 0.0) for each in (ours, in_fp64, in_fp32)]
            assert_close_to_ref(*written)
    return out


def some_outputs(dtype):
    """For test_isa.py: rows of whole vectors and others, one A for a head and a full one."""
    results = {}
    for tied, dstate in ((True, 128), (False, 17)):
        arguments = make_inputs(tied=tied, dstate=dstate, ntokens=2, dtype=dtype)
        results[f"selective_state_update {dtype} {dstate}"] = selective_state_update(**arguments)
        results[f"selective_state_update state {dtype} {dstate}"] = arguments["state"]
    return results


def check_rows_with(check_rows):
    """For test_isa.py: 64 sequences, padding among them, each from one of 64 states."""
    rows, slots = ("x", "dt", "B", "C", "z"), torch.randperm(64)
    slots[::9] = -1
    for dtype, tied in itertools.product((torch.float32, torch.bfloat16, torch.float16), (True, False)):
        arguments = make_inputs(batch=64, nslots=64, tied=tied, headdim=21, dstate=48, dtype=dtype)

        def call(slots, *values, arguments=arguments):
            given = dict(zip(rows, values, strict=True), state_batch_indices=slots, disable_state_update=True)
            return selective_state_update(**(arguments | given))

        check_rows(call, slots, *(arguments[name] for name in rows))
