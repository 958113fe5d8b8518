"""selective_scan refuses by one sentence, and writes nothing then."""

import pytest
import torch
from helpers import assert_bitwise, assert_refused

from llamba_kernels._load import call
from llamba_kernels.ops import selective_scan

GOOD = dict(
    x=torch.ones(2, 3, 4),
    dt=torch.ones(2, 3, 4),
    A=-torch.ones(4, 8),
    B=torch.ones(2, 3, 16),
    C=torch.ones(2, 3, 8),
    D=torch.ones(4),
    z=torch.ones(2, 3, 4),
    dt_bias=torch.ones(4),
    B_heads=2,
    C_heads=1,
    dt_softplus=True,
    initial_state=torch.ones(2, 4, 8),
    cu_seqlens=None,
    state_every=2,
)


def packed(bounds, **change):
    """One batch entry of three tokens."""
    one = {name: GOOD[name][:1] for name in ("x", "dt", "B", "C", "z")}
    return one | dict(cu_seqlens=torch.tensor(bounds, dtype=torch.int32), initial_state=None) | change


MOST = 2**63 - 1
REFUSED = {
    "x dtype": (dict(x=GOOD["x"].double()), TypeError, "x must be float32, bfloat16 or float16; got float64"),
    "x dim": (dict(x=torch.ones(3, 4)), ValueError, "x must have 3 dimensions; got shape (3, 4)"),
    "x dim 1": (dict(x=torch.ones(4)), ValueError, "x must have 3 dimensions; got shape (4,)"),
    "x stride": (dict(x=torch.ones(2, 4, 3).mT), TypeError, "x must have stride 1 in dimension -1; got 3"),
    "x width": (dict(x=torch.ones(2, 3, 0)), ValueError, "d_inner must be 1 to 16777216; got 0"),
    "x None": (dict(x=None), TypeError, "x must be a tensor; got None"),
    "dt shape": (
        dict(dt=torch.ones(2, 3, 1)),
        ValueError,
        "dt must have shape (batch, length, d_inner) = (2, 3, 4); got (2, 3, 1)",
    ),
    "dt dtype": (dict(dt=GOOD["dt"].half()), TypeError, "dt must have the dtype of x, float32; got float16"),
    "dt stride": (dict(dt=torch.ones(2, 4, 3).mT), TypeError, "dt must have stride 1 in dimension -1; got 3"),
    "A dim": (dict(A=-torch.ones(4)), ValueError, "A must have 2 dimensions; got shape (4,)"),
    "A shape": (
        dict(A=-torch.ones(5, 8)),
        ValueError,
        "A must have shape (d_inner, dstate) = (4, 8); got (5, 8)",
    ),
    "A dtype": (dict(A=GOOD["A"].bfloat16()), TypeError, "A must be float32; got bfloat16"),
    "A stride": (dict(A=-torch.ones(8, 4).T), TypeError, "A must have stride 1 in dimension -1; got 4"),
    "dstate": (dict(A=-torch.ones(4, 257)), ValueError, "dstate must be 1 to 256; got 257"),
    "B shape": (
        dict(B=torch.ones(2, 3, 8)),
        ValueError,
        "B must have shape (batch, length, B_heads * dstate) = (2, 3, 16); got (2, 3, 8)",
    ),
    "B dtype": (dict(B=GOOD["B"].half()), TypeError, "B must have the dtype of x, float32; got float16"),
    "C shape": (
        dict(C=torch.ones(2, 3, 16)),
        ValueError,
        "C must have shape (batch, length, C_heads * dstate) = (2, 3, 8); got (2, 3, 16)",
    ),
    "B_heads": (
        dict(B_heads=3, B=torch.ones(2, 3, 24)),
        ValueError,
        "B_heads must divide d_inner = 4; got 3",
    ),
    "C_heads": (dict(C_heads=0), ValueError, "C_heads must be 1 to 4; got 0"),
    "B_heads tensor": (dict(B_heads=torch.tensor(2)), TypeError, "B_heads must be an int; got Tensor tensor(2)"),
    "dt_softplus": (dict(dt_softplus=1), TypeError, "dt_softplus must be a bool; got int 1"),
    "D shape": (dict(D=torch.ones(5)), ValueError, "D must have shape (d_inner) = (4,); got (5,)"),
    "D dtype": (dict(D=torch.ones(4).half()), TypeError, "D must be float32; got float16"),
    "D stride": (dict(D=torch.ones(8)[::2]), TypeError, "D must have stride 1 in dimension -1; got 2"),
    "z shape": (
        dict(z=torch.ones(2, 3, 5)),
        ValueError,
        "z must have shape (batch, length, d_inner) = (2, 3, 4); got (2, 3, 5)",
    ),
    "dt_bias dtype": (dict(dt_bias=torch.ones(4).half()), TypeError, "dt_bias must be float32; got float16"),
    "initial_state shape": (
        dict(initial_state=torch.ones(1, 4, 8)),
        ValueError,
        "initial_state must have shape (nsequences, d_inner, dstate) = (2, 4, 8); got (1, 4, 8)",
    ),
    "initial_state dtype": (
        dict(initial_state=torch.ones(2, 4, 8).half()),
        TypeError,
        "initial_state must be float32; got float16",
    ),
    "state_every": (dict(state_every=0), ValueError, f"state_every must be 1 to {MOST}; got 0"),
    "state_every float": (dict(state_every=1.5), TypeError, "state_every must be an int; got float 1.5"),
    "cu_seqlens dtype": (
        packed([0, 3]) | dict(cu_seqlens=torch.tensor([0, 3])),
        TypeError,
        "cu_seqlens must be int32; got int64",
    ),
    "cu_seqlens batch": (
        dict(cu_seqlens=torch.tensor([0, 1, 3], dtype=torch.int32)),
        ValueError,
        "batch must be 1 with cu_seqlens; got 2",
    ),
    "cu_seqlens empty": (packed([]), ValueError, "the size of cu_seqlens must be 1 to 2147483647; got 0"),
    "cu_seqlens start": (packed([1, 3]), ValueError, "cu_seqlens must go from 0 to the length, 3; got 1 to 3"),
    "cu_seqlens end": (packed([0, 4]), ValueError, "cu_seqlens must go from 0 to the length, 3; got 0 to 4"),
    "cu_seqlens order": (packed([0, 2, 1, 3]), ValueError, "cu_seqlens must not descend; got 1 after 2"),
    "cu_seqlens initial_state": (
        packed([0, 1, 3], initial_state=torch.ones(1, 4, 8)),
        ValueError,
        "initial_state must have shape (nsequences, d_inner, dstate) = (2, 4, 8); got (1, 4, 8)",
    ),
}


@pytest.mark.parametrize("change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(change, kind, sentence):
    assert_refused(kind, f"selective_scan: {sentence}", selective_scan, **(GOOD | change), return_final_state=True)


OUTPUTS = dict(y=(2, 3, 4), final_state=(2, 4, 8), states=(2, 1, 4, 8), chunk_states=(2, 0, 8, 4))
SHARED = torch.full((64,), 7.0)
REFUSED_OUTPUTS = {
    "y shape": (
        dict(y=torch.ones(2, 3, 5)),
        ValueError,
        "y must have shape (batch, length, d_inner) = (2, 3, 4); got (2, 3, 5)",
    ),
    "y dtype": (dict(y=torch.ones(2, 3, 4).half()), TypeError, "y must have the dtype of x, float32; got float16"),
    "y is x": (dict(y=GOOD["x"]), TypeError, "y must share no memory with x; got one that does"),
    "final_state shape": (
        dict(final_state=torch.ones(1, 4, 8)),
        ValueError,
        "final_state must have shape (nsequences, d_inner, dstate) = (2, 4, 8); got (1, 4, 8)",
    ),
    "final_state is initial_state": (
        dict(final_state=GOOD["initial_state"]),
        TypeError,
        "final_state must share no memory with initial_state; got one that does",
    ),
    "states shape": (
        dict(states=torch.ones(2, 2, 4, 8)),
        ValueError,
        "states must have shape (batch, length / state_every, d_inner, dstate) = (2, 1, 4, 8); got (2, 2, 4, 8)",
    ),
    "states overlap y": (
        dict(states=SHARED.view(2, 1, 4, 8), y=SHARED[:24].view(2, 3, 4)),
        TypeError,
        "states must share no memory with y; got one that does",
    ),
    "chunk_states shape": (
        dict(chunk_states=torch.ones(2, 1, 8, 4)),
        ValueError,
        "chunk_states must have shape (batch, chunks, dstate, d_inner) = (2, 0, 8, 4); got (2, 1, 8, 4)",
    ),
}


@pytest.mark.parametrize("change, kind, sentence", REFUSED_OUTPUTS.values(), ids=REFUSED_OUTPUTS)
def test_refused_outputs(change, kind, sentence):
    """Of the operator itself; nothing is written then."""
    outputs = {name: torch.full(shape, 7.0) for name, shape in OUTPUTS.items()}
    arguments = (*GOOD.values(), *(outputs | change).values())
    op = torch.ops.llamba.selective_scan.default
    assert_refused(kind, f"selective_scan: {sentence}", lambda: call(op, *arguments))
    for name in outputs.keys() - change.keys():
        assert_bitwise(outputs[name], torch.full(OUTPUTS[name], 7.0))


BACKWARD = dict(
    **GOOD,
    chunk_states=torch.ones(2, 0, 8, 4),
    grad_y=torch.ones(2, 3, 4),
    grad_final_state=torch.ones(2, 4, 8),
    grad_states=torch.ones(2, 1, 4, 8),
)
WANTED = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
REFUSED_GRADIENTS = {
    "chunk_states": (
        dict(chunk_states=torch.ones(2, 1, 8, 4)),
        ValueError,
        "chunk_states must have shape (batch, chunks, dstate, d_inner) = (2, 0, 8, 4); got (2, 1, 8, 4)",
    ),
    "grad_y": (
        dict(grad_y=torch.ones(2, 3, 4).half()),
        TypeError,
        "grad_y must have the dtype of x, float32; got float16",
    ),
    "grad_final_state": (
        dict(grad_final_state=torch.ones(1, 4, 8)),
        ValueError,
        "grad_final_state must have shape (nsequences, d_inner, dstate) = (2, 4, 8); got (1, 4, 8)",
    ),
    "grad_states": (
        dict(grad_states=torch.ones(2, 3, 4, 8)),
        ValueError,
        "grad_states must have shape (batch, length / state_every, d_inner, dstate) = (2, 1, 4, 8); got (2, 3, 4, 8)",
    ),
    "state_every": (dict(state_every=0), ValueError, f"state_every must be 1 to {MOST}; got 0"),
    "grad_x": (
        dict(grad_x=torch.ones(2, 3, 5)),
        ValueError,
        "grad_x must have shape (batch, length, d_inner) = (2, 3, 4); got (2, 3, 5)",
    ),
    "grad_A": (dict(grad_A=torch.ones(4, 8).half()), TypeError, "grad_A must be float32; got float16"),
    "grad_A rows": (dict(grad_A=torch.ones(4, 9)[:, :8]), TypeError, "grad_A must have stride 8 in dimension 0; got 9"),
    "grad_z": (dict(grad_z=None), TypeError, "grad_z must be a tensor with z; got None"),
    "grad_dt is x": (dict(grad_dt=GOOD["x"]), TypeError, "grad_dt must share no memory with x; got one that does"),
    "grad_z overlaps grad_x": (
        dict(grad_x=SHARED[:24].view(2, 3, 4), grad_z=SHARED[20:44].view(2, 3, 4)),
        TypeError,
        "grad_z must share no memory with grad_x; got one that does",
    ),
}


@pytest.mark.parametrize("change, kind, sentence", REFUSED_GRADIENTS.values(), ids=REFUSED_GRADIENTS)
def test_refused_gradients(change, kind, sentence):
    """Of the backward operator; nothing is written then."""
    written = {f"grad_{name}": torch.full(GOOD[name].shape, 7.0) for name in WANTED}
    op = torch.ops.llamba.selective_scan_backward.default
    assert_refused(
        kind, f"selective_scan_backward: {sentence}", lambda: call(op, *(BACKWARD | written | change).values())
    )
    for name in written.keys() - change.keys():
        assert_bitwise(written[name], torch.full(GOOD[name[5:]].shape, 7.0))
