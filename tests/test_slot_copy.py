"""slot_copy: against the reference, bit for bit, whatever the layout; what it must not touch; what it refuses."""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_refused

from llamba_kernels.cache import Cursor, Session
from llamba_kernels.ops import slot_copy
from python_ref.slot_copy import slot_copy_ref


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def make_cursor():
    """Slots at positions 5, 0, 9, 2, the last with an open step."""
    cursor = Cursor(4, Session(max_window=2, fold_every=2))
    cursor.reset(int32(0, 2, 3), int32(5, 9, 2))
    cursor.begin(int32(3), int32(1))
    return cursor.table


def make_buffers():
    torch.manual_seed(0)
    states = [
        torch.randn(4, 3, 5, 16),
        torch.randn(4, 7, 9).bfloat16(),
        torch.randn(4, 7, 3).half(),
        torch.arange(4),
        torch.randn(4, 0, 2),
        torch.randn(4, 6, 5).double().transpose(1, 2),
    ]
    return states, [torch.randn(4, 2, 12, 8), torch.randn(4, 12, 2, 8).bfloat16().transpose(1, 2)]


@pytest.mark.parametrize("strided", [False, True])
def test_equals_reference(strided):
    cursor, (states, kv) = make_cursor(), make_buffers()
    src, dst = int32(2, -1, 0), int32(1, -1, 3)
    surrounded = [Surrounded(t) if t.is_floating_point() and t.numel() and strided else None for t in states + kv]
    actual = [t.clone() if s is None else s.inner for t, s in zip(states + kv, surrounded, strict=True)]
    table = cursor.clone()
    slot_copy(table, actual[: len(states)], actual[len(states) :], src, dst, width=4)
    slot_copy_ref(cursor, states, kv, src, dst)
    for ours, expected in zip([table, *actual], [cursor, *states, *kv], strict=True):
        assert_bitwise(ours, expected)
    for each in filter(None, surrounded):
        each.assert_surroundings_untouched()


def test_one_source_for_many():
    cursor, (states, kv) = make_cursor(), make_buffers()
    slot_copy(cursor, states, kv, int32(0, 0, 0), int32(3, 1, 2), width=4)
    for slot in (1, 2, 3):
        for each in (cursor, *states):
            assert_bitwise(each[slot], each[0])
        for each in kv:
            assert_bitwise(each[slot, :, :5], each[0, :, :5])


def test_reference_equals_index_copy():
    cursor, (states, kv) = make_cursor(), make_buffers()
    expected = [t.index_copy(0, torch.tensor([1]), t[2:3]) for t in (cursor, *states)]
    slot_copy_ref(cursor, states, kv, int32(2), int32(1))
    for ours, each in zip((cursor, *states), expected, strict=True):
        assert_bitwise(ours, each)


@pytest.mark.device_only
@pytest.mark.parametrize(
    "src", [3, 4, 2**31 - 1, -1, 2], ids=["open step", "beyond nslots", "far beyond", "padding", "too many tokens"]
)
def test_a_bad_source_breaks_its_destination(src):
    """On a GPU: the others are copied, dst is refused until it is reset, and no buffer of it is touched."""
    cursor, (states, kv) = make_cursor(), make_buffers()
    kv[1] = kv[1][:, :, :8] if src == 2 else kv[1]
    expected = [t.clone() for t in (cursor, *states, *kv)]
    good = 2 if src == 3 else 3
    slot_copy(cursor, states, kv, int32(src, 0, 0), int32(1, good, 4), width=4)
    slot_copy_ref(expected[0], expected[1 : 1 + len(states)], expected[1 + len(states) :], int32(0), int32(good))
    expected[0][1, 3] = -1
    for ours, each in zip((cursor, *states, *kv), expected, strict=True):
        assert_bitwise(ours, each)


@pytest.mark.device_only
def test_many_buffers_and_large_ones():
    """More than one launch takes, and more bytes than a launch has threads; none of them aligned to a word."""
    cursor = make_cursor()
    states = [torch.randn(4, 3, 2 + i) for i in range(60)] + [torch.randint(-99, 99, (4, 300_001), dtype=torch.int8)]
    kv = [torch.randn(4, 2, 12, 7).half() for _ in range(30)]
    expected = [t.clone() for t in (cursor, *states, *kv)]
    slot_copy(cursor, states, kv, int32(2), int32(1), width=4)
    slot_copy_ref(expected[0], expected[1:62], expected[62:], int32(2), int32(1))
    for ours, each in zip((cursor, *states, *kv), expected, strict=True):
        assert_bitwise(ours, each)


SHARED = torch.zeros(4, 5)
REFUSED = {
    "dst length": (int32(0), int32(1, 3), {}, ValueError, "dst must have shape (batch) = (1,); got (2,)"),
    "states slots": (
        int32(0),
        int32(1),
        dict(states=[torch.zeros(4), torch.zeros(3, 2)]),
        ValueError,
        "size of states[1] in dimension 0 must be 4; got 3",
    ),
    "kv dims": (
        int32(0),
        int32(1),
        dict(kv=[torch.zeros(4, 2, 12)]),
        ValueError,
        "kv[0] must have 4 dimensions; got shape (4, 2, 12)",
    ),
    "overlap": (
        int32(0),
        int32(1),
        dict(states=[torch.zeros(1, 3).expand(4, 3)]),
        TypeError,
        "states[0] must have strides with which no two elements share memory; got shape (4, 3) with strides (0, 1)",
    ),
    "buffers overlap": (
        int32(0),
        int32(1),
        dict(states=[SHARED[:, :3], SHARED[:, 2:]]),
        TypeError,
        "states[1] must share no memory with states[0]; got one that does",
    ),
    "width": (int32(0), int32(1), dict(width=5), ValueError, "width must be 2 to 4; got 5"),
}
REFUSED_DATA = {
    "dst twice": (int32(0, 0), int32(1, 1), {}, ValueError, "dst must name a slot at most once; got 1 twice"),
    "src in dst": (int32(0, 1), int32(1, 3), {}, ValueError, "src must name no slot of dst; got 1 in both"),
    "src = dst": (int32(0), int32(0), {}, ValueError, "src must name no slot of dst; got 0 in both"),
    "src range": (int32(4), int32(1), {}, ValueError, "src must be below nslots = 4; got 4 at index 0"),
    "half padding": (
        int32(-1),
        int32(1),
        {},
        ValueError,
        "src and dst must both be slots or both be padding; got -1 and 1",
    ),
    "open step": (
        int32(3),
        int32(1),
        {},
        ValueError,
        "src slot 3 must have no open step (commit it first); got one of 1 tokens",
    ),
    "kv tokens": (
        int32(2),
        int32(1),
        dict(kv=[torch.zeros(4, 2, 12, 8), torch.zeros(4, 2, 8, 8)]),
        ValueError,
        "kv must hold the 9 tokens of slot 2; got 8 in kv[1]",
    ),
}


@pytest.mark.parametrize("src, dst, change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(src, dst, change, kind, sentence):
    assert_nothing_changes_and_refused(src, dst, change, kind, sentence)


@pytest.mark.cpu_only
@pytest.mark.parametrize("src, dst, change, kind, sentence", REFUSED_DATA.values(), ids=REFUSED_DATA)
def test_refusals_of_data(src, dst, change, kind, sentence):
    assert_nothing_changes_and_refused(src, dst, change, kind, sentence)


def assert_nothing_changes_and_refused(src, dst, change, kind, sentence):
    cursor = make_cursor()
    states, kv = ([], []) if change else make_buffers()
    arguments = dict(states=states, kv=kv, width=4) | change
    before = [t.clone() for t in (cursor, *arguments["states"], *arguments["kv"])]

    def refused():
        slot_copy(cursor, arguments["states"], arguments["kv"], src, dst, width=arguments["width"])

    assert_refused(kind, f"slot_copy: {sentence}", refused)
    for old, new in zip(before, (cursor, *arguments["states"], *arguments["kv"]), strict=True):
        assert_bitwise(new, old)


@pytest.mark.parametrize("states, got", [(None, "NoneType"), ([None], "list with NoneType"), (SHARED, "Tensor")])
def test_what_is_no_list_of_tensors_is_refused(states, got):
    sentence = f"slot_copy: states must be a list of tensors; got {got}"
    assert_refused(TypeError, sentence, slot_copy, make_cursor(), states, [], int32(0), int32(1), width=4)


def test_tensors_in_lists_are_looked_at():
    """Their gradients and devices, as those of single tensors."""
    cursor, states = make_cursor(), [torch.zeros(4, 3), torch.zeros(4, 3, requires_grad=True)]
    with pytest.raises(ValueError, match="^slot_copy: states must not require grad, .*; got one that does$"):
        slot_copy(cursor, states, [], int32(0), int32(1), width=4)
    sentence = "slot_copy: tensors must be on one device, all on meta or none; got cpu, meta"
    states = [torch.zeros(4, 3, device="meta")]
    assert_refused(TypeError, sentence, slot_copy, cursor, states, [], int32(0), int32(1), width=4)


def test_opcheck():
    cursor, (states, kv) = make_cursor(), make_buffers()
    args = (cursor, states[:2], kv[:1], int32(0), int32(1), 4)
    torch.library.opcheck(torch.ops.llamba.slot_copy.default, args)
