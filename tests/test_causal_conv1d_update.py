"""causal_conv1d_update: against the fp64 reference; windows, paths, strides and kinds of state change no bits."""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_close_to_ref, sliced, threads

from llamba_kernels.capture import Capture
from llamba_kernels.ops import causal_conv1d_update
from llamba_kernels.testing_dropins import make_causal_conv1d_update_inputs
from python_ref.causal_conv1d_update import causal_conv1d_update_ref

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAMES = dict(  # of the reference's arguments
    conv_state_indices="slots",
    num_accepted_tokens="accepted",
    query_start_loc="query_start",
    block_idx_last_scheduled_token="target_block",
    initial_state_idx="source_block",
    retrieve_parent_token="parents",
    intermediate_conv_window="windows",
    intermediate_state_indices="window_entries",
)
CASES = {
    "base": {},
    "width 2": dict(width=2),
    "width 3, 5 tokens": dict(width=3, seqlen=5),
    "4 tokens": dict(seqlen=4),
    "longer state": dict(state_len=13, seqlen=4),
    "one channel": dict(dim=1, seqlen=2),
    "17 channels": dict(dim=17),
    "300 channels": dict(dim=300, seqlen=2),
    "no bias": dict(bias=False),
    "no activation": dict(activation=None),
    "bf16": dict(dtype=BF16, seqlen=3),
    "fp16": dict(dtype=FP16, seqlen=3),
    "bf16, fp32 weight": dict(dtype=BF16, weight_dtype=FP32),
    "fp16, bf16 weight": dict(dtype=FP16, weight_dtype=BF16),
    "bf16, fp32 state": dict(dtype=BF16, state_dtype=FP32, seqlen=3, windows=True),
    "fp32, bf16 state": dict(state_dtype=BF16, seqlen=3, windows=True),
    "fp16, bf16 state": dict(dtype=FP16, state_dtype=BF16, seqlen=3),
    "no sequences": dict(batch=0),
    "no tokens": dict(seqlen=0),
    "padding": dict(nslots=9, seqlen=2),
    "ring": dict(state="ring", state_len=7, seqlen=4),
    "ring of width-1, 5 tokens": dict(state="ring", seqlen=5, dtype=BF16),
    "drafts": dict(state="drafts", seqlen=4, nslots=9),
    "drafts, longer state": dict(state="drafts", seqlen=2, state_len=8, width=3, dtype=BF16),
    "drafts of width 2": dict(state="drafts", seqlen=3, width=2),
    "packed": dict(packed=True, seqlen=4, batch=6, nslots=9),
    "packed drafts": dict(packed=True, seqlen=4, batch=6, state="drafts"),
    "blocks": dict(blocks=3, seqlen=2, state_len=5),
    "blocks of drafts": dict(blocks=2, seqlen=2, state="drafts", packed=True),
    "tree": dict(tree=True, seqlen=8, windows=True),
    "tree of drafts": dict(tree=True, seqlen=5, windows=True, state="drafts", dtype=BF16),
    "windows": dict(windows=True, seqlen=3, width=3, nslots=9),
    "windows of a ring": dict(windows=True, seqlen=3, state="ring", state_len=9, dtype=FP16),
}


def make_inputs(**change):
    return make_causal_conv1d_update_inputs(**change)


def reference(inputs, **compute_dtype):
    """Changes inputs' state and windows as the operator does; returns out in fp64, or in compute_dtype."""
    arguments = {NAMES.get(name, name): value for name, value in inputs.items()}
    return causal_conv1d_update_ref(silu=arguments.pop("activation") is not None, **arguments, **compute_dtype)


def copied(inputs):
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_state_and_windows_against_fp64_reference(change):
    inputs = make_inputs(**change)
    expected_inputs = copied(inputs)
    torch_result = reference(copied(inputs), compute_dtype=FP32)
    out = causal_conv1d_update(**inputs)
    expected = reference(expected_inputs)
    assert out.dtype == inputs["x"].dtype and out.shape == expected.shape
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            assert_bitwise(value, expected_inputs[name])
    if out.numel():
        assert_close_to_ref(out, expected, torch_result.to(out.dtype))


def test_reference_against_one_long_conv():
    """Every way of keeping the state: the tokens that stay are those of one sequence."""
    weight, bias = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    history = torch.randn(1, 6, 60, dtype=torch.float64)
    expected = torch.nn.functional.conv1d(history, weight.unsqueeze(1), bias, groups=6)[0]  # of token 3, 4, ...
    for state in ("shifted", "ring", "drafts"):
        length, position, accepted = 6, 10, 1
        conv_state = torch.full((1, 6, length), torch.nan, dtype=torch.float64)
        for j in range(3):
            column = {"shifted": length - 3 + j, "ring": (7 + j) % length, "drafts": j}[state]
            conv_state[0, :, column] = history[0, :, 7 + j]
        while position + 4 <= 60:
            window = history[:, :, position : position + 4]
            kept = int(torch.randint(1, 5, ())) if state == "drafts" else 4
            numbers = {
                "shifted": {},
                "ring": dict(cache_seqlens=torch.tensor([position])),
                "drafts": dict(accepted=torch.tensor([accepted])),
            }
            out = causal_conv1d_update_ref(window, conv_state, weight, bias, False, **numbers[state])
            torch.testing.assert_close(out[0], expected[:, position - 3 : position + 1])
            position, accepted = position + kept, kept


@pytest.mark.parametrize("dtypes", [(FP32, FP32), (BF16, BF16), (FP32, BF16), (BF16, FP32)], ids=str)
@pytest.mark.parametrize("width", [2, 3, 4])
def test_k_tokens_are_k_calls_however_the_state_is_kept(width, dtypes):
    """Bit for bit: one call, single tokens, a ring, accepted drafts, every token's window, a chain told as a tree."""
    inputs = make_inputs(dim=33, seqlen=6, width=width, dtype=dtypes[0], state_dtype=dtypes[1], windows=True)
    single, ring, drafts, tree = copied(inputs), copied(inputs), copied(inputs), copied(inputs)
    out = causal_conv1d_update(**inputs)
    for t in range(6):
        one = causal_conv1d_update(**single | dict(x=single["x"][..., t], intermediate_conv_window=None))
        assert_bitwise(one, out[..., t])
        slots = inputs["conv_state_indices"]
        assert_bitwise(single["conv_state"][slots], inputs["intermediate_conv_window"][slots, t])
    assert_bitwise(single["conv_state"], inputs["conv_state"])
    assert_bitwise(causal_conv1d_update(**ring | dict(cache_seqlens=torch.zeros(3, dtype=torch.int32))), out)
    wide = torch.cat([drafts["conv_state"], torch.full((3, 33, 5), torch.nan, dtype=dtypes[1])], -1)
    ones = torch.ones(3, dtype=torch.int32)
    assert_bitwise(causal_conv1d_update(**drafts | dict(conv_state=wide, num_accepted_tokens=ones)), out)
    parents = torch.arange(-1, 5, dtype=torch.int32).expand(3, 6)
    assert_bitwise(causal_conv1d_update(**tree | dict(retrieve_parent_token=parents)), out)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_a_walk_of_drafts_is_plain_decoding(dtype):
    """40 steps of three sequences: some prefix is accepted each time, and wrong drafts leave no trace."""
    inputs = make_inputs(dim=20, width=4, dtype=dtype)
    plain, length = copied(inputs), 5
    state = torch.cat([inputs["conv_state"], torch.full((3, 20, length - 1), torch.nan, dtype=dtype)], -1)
    accepted = torch.ones(3, dtype=torch.int32)
    for _ in range(40):
        window = torch.randn(3, 20, length).to(dtype)
        out = causal_conv1d_update(**inputs | dict(x=window, conv_state=state, num_accepted_tokens=accepted))
        accepted = torch.randint(1, length + 1, (3,), dtype=torch.int32)
        for i in range(3):
            for t in range(accepted[i]):
                slots = torch.full((3,), -1, dtype=torch.int32)
                slots[i] = inputs["conv_state_indices"][i]
                one = causal_conv1d_update(**plain | dict(x=window[..., t], conv_state_indices=slots))
                assert_bitwise(out[i, :, t], one[i])


def test_a_path_of_a_tree_is_a_chain():
    inputs = make_inputs(batch=1, dim=19, seqlen=9, tree=True, windows=True, dtype=BF16)
    parents = inputs["retrieve_parent_token"][0].tolist()
    before = inputs["conv_state"].clone()
    out = causal_conv1d_update(**inputs)
    for leaf in range(9):
        path, node = [], leaf
        while node >= 0:
            path, node = [node, *path], parents[node] if node > 0 else -1
        chain = dict(x=inputs["x"][..., path], conv_state=before.clone(), retrieve_parent_token=None)
        assert_bitwise(causal_conv1d_update(**inputs | chain | dict(intermediate_conv_window=None)), out[..., path])
        assert_bitwise(chain["conv_state"][0], inputs["intermediate_conv_window"][0, leaf])


@pytest.mark.parametrize(
    "change", [{}, dict(dtype=BF16), dict(state="ring", state_len=5), dict(state="drafts")], ids=str
)
def test_strides_and_bystanders(change):
    """Channels or tokens last, slices of larger tensors, expanded weights of one tap; NaN around and in other slots."""
    inputs = make_inputs(dim=37, seqlen=4, nslots=8, windows=True, **change)
    inputs["intermediate_conv_window"].fill_(torch.nan)
    used = inputs["conv_state_indices"][inputs["conv_state_indices"] >= 0].long()
    others = [slot for slot in range(8) if slot not in used]
    inputs["conv_state"][others] = torch.nan
    expected = copied(inputs)
    out = causal_conv1d_update(**expected)
    assert out.isfinite().all() and (out[1] == 0).all()
    for transposed in (False, True):
        names = ("x", "conv_state", "intermediate_conv_window")
        traps = {}
        for name in names:
            value = inputs[name].transpose(-1, -2).contiguous() if transposed else inputs[name]
            trap = Surrounded(value)
            traps[name] = trap, trap.inner.transpose(-1, -2) if transposed else trap.inner
        target = Surrounded(torch.zeros_like(inputs["x"]), fill=7.0)
        given = copied(inputs) | {name: view for name, (_, view) in traps.items()}
        given |= dict(weight=sliced(inputs["weight"].t()).t() if transposed else sliced(inputs["weight"]))
        given |= dict(conv_state_indices=inputs["conv_state_indices"].repeat_interleave(2)[::2])
        assert causal_conv1d_update(**given, out=target.inner) is target.inner
        assert_bitwise(target.inner, out)
        for name, (trap, view) in traps.items():
            trap.assert_surroundings_untouched()
            assert_bitwise(view.contiguous(), expected[name])
        target.assert_surroundings_untouched()


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_a_sequence_has_the_same_bits_beside_any_others(dtype):
    inputs = make_inputs(batch=40, dim=600, seqlen=3, dtype=dtype)
    whole = copied(inputs)
    out = causal_conv1d_update(**whole)
    for count in (1, 2, 3):
        rows = torch.randperm(40)[: 13 * count]
        few = copied(inputs) | dict(x=inputs["x"][rows], conv_state_indices=inputs["conv_state_indices"][rows])
        with threads(count):
            assert_bitwise(causal_conv1d_update(**few), out[rows])
        slots = few["conv_state_indices"].long()
        assert_bitwise(few["conv_state"][slots], whole["conv_state"][slots])


@pytest.mark.parametrize("state", ["shifted", "ring", "drafts"])
def test_out_may_be_x(state):
    inputs = make_inputs(seqlen=5, state=state, nslots=9)
    again = copied(inputs)
    out = causal_conv1d_update(**inputs)
    assert_bitwise(causal_conv1d_update(**again, out=again["x"]), out)
    assert_bitwise(again["conv_state"], inputs["conv_state"])


def test_null_block_and_activations():
    """vLLM's null block counts as padding; True, silu and swish are one."""
    inputs = make_inputs(seqlen=2)
    inputs["conv_state_indices"] = torch.arange(3, dtype=torch.int32)
    again, before = copied(inputs), inputs["conv_state"].clone()
    out = causal_conv1d_update(**inputs, null_block_id=0)
    assert (out[0] == 0).all() and (out[1:] != 0).all()
    assert_bitwise(inputs["conv_state"][0], before[0])
    for activation in (True, "swish"):
        twice = copied(again) | dict(activation=activation)
        assert_bitwise(causal_conv1d_update(**twice, pad_slot_id=0), out)
    twice = copied(again) | dict(conv_state_indices=None)
    assert_bitwise(causal_conv1d_update(**twice)[1:], out[1:])


def test_rows_of_no_sequence():
    inputs = make_inputs(packed=True, seqlen=3, batch=4)
    rows = len(inputs["x"])
    longer = copied(inputs) | dict(x=torch.cat([inputs["x"], torch.full((5, 40), torch.nan)]))
    out, expected = causal_conv1d_update(**copied(longer)), causal_conv1d_update(**inputs)
    assert_bitwise(out[:rows], expected)
    assert (out[rows:] == 0).all()
    given = torch.full_like(longer["x"], 7.0)
    assert_bitwise(causal_conv1d_update(**longer, out=given)[rows:], torch.full((5, 40), 7.0))


def test_opcheck_compile_and_capture():
    inputs = make_inputs(seqlen=2, windows=True)
    keys = ("x", "conv_state", "weight", "bias")
    values = [inputs[key] for key in keys]
    none = (None,) * 2
    args = (*values, True, None, inputs["conv_state_indices"], *none, -1, *none, None, None, None)
    torch.library.opcheck(torch.ops.llamba.causal_conv1d_update.default, (*args, torch.empty_like(inputs["x"])))
    compiled = torch.compile(lambda **kw: causal_conv1d_update(**kw) + 1, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(**copied(inputs)), causal_conv1d_update(**copied(inputs)) + 1)
    out, again = torch.empty_like(inputs["x"]), copied(inputs)
    capture = Capture(lambda: causal_conv1d_update(**inputs, out=out), inputs)
    causal_conv1d_update(**again)
    capture.replay()
    assert_bitwise(out, causal_conv1d_update(**again))
    assert_bitwise(inputs["conv_state"], again["conv_state"])
