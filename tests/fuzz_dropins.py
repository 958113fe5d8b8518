"""For tests/fuzz.py: the drop-ins."""

import torch
from fuzz_case import FLOATING, NAN, ROUNDING, Op, require, stored

from llamba_kernels.testing_dropins import make_causal_conv1d_update_inputs
from python_ref.causal_conv1d_update import causal_conv1d_update_ref

# ---- causal_conv1d_update ----


def draw_causal_conv1d_update(draw, tree=False):
    kind, width, seqlen = draw.choice(("shifted", "ring", "drafts")), draw.choice((2, 3, 4)), draw.size(0, 9)
    batch, dim = draw.size(0, 5), draw.choice((0, 1, 15, 16, 17, 33, 257))
    blocks = draw.choice((0, 0, 2)) if kind != "ring" else 0
    least = max(width - 2 + seqlen if kind == "drafts" else 0, width - 1)
    a = make_causal_conv1d_update_inputs(
        batch,
        dim,
        seqlen,
        width,
        state=kind,
        state_len=least + draw.choice((0, 0, 1, 5)),
        nslots=batch * max(blocks, 1) + draw.choice((1, 2, 5)),
        bias=draw.random() < 0.5,
        activation=draw.choice((None, False, True, "silu", "swish")),
        packed=draw.random() < 0.3,
        blocks=blocks,
        tree=tree,
        windows=draw.random() < 0.4,
        dtype=draw.choice(FLOATING),
        state_dtype=draw.choice(FLOATING),
        weight_dtype=draw.choice(FLOATING),
    )
    if not blocks and draw.random() < 0.2:
        a["conv_state_indices"] = None
    elif "intermediate_conv_window" in a and draw.random() < 0.5:
        a["intermediate_state_indices"] = torch.randperm(len(a["conv_state"]))[:batch].int()
    if draw.random() < 0.2:
        a[draw.choice(("pad_slot_id", "null_block_id"))] = draw.choice((-1, 0, 1))
    if seqlen == 1 and not a.keys() & {"query_start_loc", "retrieve_parent_token"} and draw.random() < 0.5:
        a["x"] = a["x"].squeeze(-1)
    return a | dict(out=draw.maybe(torch.full(a["x"].shape, NAN, dtype=a["x"].dtype)))


def expect_causal_conv1d_update(x, conv_state, weight, out, **rest):
    """A sum of width products in fp32: so many roundings of the sum of their absolute values, and SiLU's 8 of y."""
    for tensor in (x, conv_state, weight):
        require(tensor.dtype in FLOATING, "dtypes")
    bias, silu = rest.pop("bias"), rest.pop("activation")
    require(silu in (None, "silu", "swish") or isinstance(silu, bool), "activation is one of these")
    ring, slots, accepted = (rest.pop(n, None) for n in ("cache_seqlens", "conv_state_indices", "num_accepted_tokens"))
    start, parents = rest.pop("query_start_loc", None), rest.pop("retrieve_parent_token", None)
    windows, entries = rest.pop("intermediate_conv_window", None), rest.pop("intermediate_state_indices", None)
    pad, null = rest.pop("pad_slot_id", -1), rest.pop("null_block_id", None)
    blocks = rest.pop("block_idx_last_scheduled_token", None), rest.pop("initial_state_idx", None)
    for numbers in (ring, slots, accepted, start, entries, *blocks):
        require(numbers is None or numbers.dtype == torch.int32, "numbers are int32")
    require(parents is None or parents.dtype in (torch.int32, torch.int64), "parents are int32 or int64")
    require(
        bias is None or (bias.dtype == weight.dtype and bias.shape == weight.shape[:1]), "bias is of weight's dtype"
    )
    require(not rest, "no other arguments")
    numbers = (ring, slots, accepted, start, pad if null is None else null, *blocks, parents)
    copies = conv_state.clone(), None if windows is None else windows.clone()
    size = causal_conv1d_update_ref(
        x.abs(),
        copies[0].abs_(),
        weight.abs(),
        None if bias is None else bias.abs(),
        False,
        *numbers,
        copies[1],
        entries,
    )
    value = causal_conv1d_update_ref(x, conv_state, weight, bias, bool(silu), *numbers, windows, entries)
    tolerance = 2 * (weight.shape[1] + 2) * ROUNDING * size + 8 * ROUNDING * value.abs() + stored(value, x.dtype)
    if start is not None and out is not None:  # rows of no sequence
        for rows in (slice(0, int(start[0])), slice(int(start[-1]), None)):
            value[rows], tolerance[rows] = out[rows].double(), 0.0
    expected = {"out": (value, tolerance), "conv_state": (conv_state, 0.0)}
    return expected if windows is None else expected | {"intermediate_conv_window": (windows, 0.0)}


CONV = dict(
    name="causal_conv1d_update",
    expect=expect_causal_conv1d_update,
    written=("out", "conv_state", "intermediate_conv_window"),
    returns=("out",),
    any_strides=("x", "conv_state", "weight", "out", "retrieve_parent_token", "intermediate_conv_window"),
)
DROPIN_OPS = (
    Op(draw=draw_causal_conv1d_update, in_place=("x",), **CONV),
    Op(draw=lambda draw: draw_causal_conv1d_update(draw, tree=True), **CONV),
)
