"""kv_compact: against the reference; a tree step, compacted, goes on as the chain; bystanders; what it refuses."""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_refused, sliced, threads

from llamba_kernels.ops import attention_step, kv_compact
from llamba_kernels.testing import make_attention_step_inputs, make_kv_compact_inputs
from python_ref.kv_compact import kv_compact_ref

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BASE = dict(positions=[0, 7, 30, 2], ntokens=[5, 8, 1, 3])


def make_inputs(**change):
    return make_kv_compact_inputs(**(BASE | change))


def copied(value):
    return [copied(each) for each in value] if isinstance(value, list) else value.clone()


def call(inputs):
    """The caches after the call, of copies."""
    inputs = {name: copied(value) for name, value in inputs.items()}
    assert kv_compact(**inputs) is None
    return inputs["k_caches"], inputs["v_caches"]


def assert_same_caches(actual, expected):
    for one, other in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True):
        assert_bitwise(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nlayers, kv_heads, head_dim", [(1, 1, 1), (3, 2, 16), (30, 3, 64), (2, 8, 5)])
def test_equals_reference(nlayers, kv_heads, head_dim, dtype):
    """On 1 to 3 threads; also what lies beside the moved rows."""
    for _ in range(5):
        inputs = make_inputs(nlayers=nlayers, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype)
        expected = kv_compact_ref(**inputs)
        for count in (1, 2, 3):
            with threads(count):
                assert_same_caches(call(inputs), expected)


def test_reference_against_one_gather():
    inputs = make_inputs()
    source = torch.arange(inputs["k_caches"][0].shape[2]).repeat(inputs["cursor"].shape[0], 1)  # [nslots, max_tokens]
    for b, slot in enumerate(inputs["slots"].tolist()):
        position, accepted = int(inputs["cursor"][slot, 0]), int(inputs["accepted"][b])
        source[slot, position : position + accepted] = position + inputs["path"][b, :accepted]
    index = source[:, None, :, None].expand_as(inputs["k_caches"][0])
    expected = [[cache.gather(2, index) for cache in inputs[name]] for name in ("k_caches", "v_caches")]
    assert_same_caches(kv_compact_ref(**inputs), expected)


def test_many_rows_on_several_threads():
    inputs = make_inputs(positions=[100] * 4, ntokens=[64] * 4, nlayers=30, kv_heads=8, head_dim=64)
    inputs["accepted"][:] = 64
    inputs["accepted"][1] = 40
    inputs["path"][:] = torch.arange(64)
    inputs["path"][1, :40] = torch.arange(24, 64)
    for count in (1, 2, 3):
        with threads(count):
            assert_same_caches(call(inputs), kv_compact_ref(**inputs))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compacted_tree_step_goes_on_as_a_chain(dtype):
    """The accepted path's outputs, and those of the step after it, are those of chains, bit for bit."""
    positions, ntokens = [250, 3, 511, 0], [6, 6, 6, 6]
    tree = make_attention_step_inputs(positions, ntokens, tree=True, dtype=dtype)
    tree["parents"][:] = torch.tensor([-1, 0, 0, 1, 2, 4], dtype=torch.int32)
    accepted = torch.tensor([4, 3, 2, 1], dtype=torch.int32)
    path = torch.tensor([0, 2, 4, 5], dtype=torch.int32).expand(4, 4)
    caches = [tree[name].clone() for name in ("k_cache", "v_cache")]

    out = attention_step(**tree)
    kv_compact([tree["k_cache"]], [tree["v_cache"]], tree["cursor"], tree["slots"], accepted, path)
    chain_cursor = tree["cursor"].clone()
    for b, slot in enumerate(tree["slots"].tolist()):
        chain_cursor[slot, 3] = accepted[b]
    columns = path[0].long()
    chain = {name: tree[name][:, columns] for name in ("q", "k", "v")}
    expected = attention_step(*chain.values(), *caches, chain_cursor, tree["slots"])
    for b, slot in enumerate(tree["slots"].tolist()):
        assert_bitwise(out[b, columns[: accepted[b]]], expected[b, : accepted[b]])
        chain_cursor[slot, 0] += accepted[b]
        chain_cursor[slot, 3] = 2
    more = [torch.randn(4, 2, heads, 64).to(dtype) for heads in (4, 2, 2)]
    after_tree = attention_step(*more, tree["k_cache"], tree["v_cache"], chain_cursor, tree["slots"])
    assert_bitwise(after_tree, attention_step(*more, *caches, chain_cursor, tree["slots"]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_padding_and_bystanders(dtype):
    inputs = make_inputs(dtype=dtype)
    inputs["slots"][2] = -1
    inputs["accepted"][2], inputs["path"][2] = 99, 99  # not read
    expected = kv_compact_ref(**inputs)
    surrounded = {name: [Surrounded(cache, fill=7.0) for cache in inputs[name]] for name in ("k_caches", "v_caches")}
    given = {name: sliced(inputs[name]) for name in ("cursor", "slots", "accepted", "path")}
    kv_compact(**{name: [s.inner for s in caches] for name, caches in surrounded.items()}, **given)
    assert_same_caches([[s.inner for s in caches] for caches in surrounded.values()], expected)
    for s in (*surrounded["k_caches"], *surrounded["v_caches"]):
        s.assert_surroundings_untouched()


def test_keys_and_values_may_be_columns_of_one_buffer():
    inputs = make_inputs()
    expected = kv_compact_ref(**inputs)
    both = [torch.cat(pair, -1) for pair in zip(inputs["k_caches"], inputs["v_caches"], strict=True)]
    inputs["k_caches"], inputs["v_caches"] = [b[..., :16] for b in both], [b[..., 16:] for b in both]
    kv_compact(**inputs)
    assert_same_caches((inputs["k_caches"], inputs["v_caches"]), expected)


def good():
    return dict(
        k_caches=[torch.full((2, 1, 8, 4), 5.0) for _ in range(2)],
        v_caches=[torch.full((2, 1, 8, 4), 6.0) for _ in range(2)],
        cursor=torch.tensor([[4, 0, 0, 3], [5, 0, 0, 3]], dtype=torch.int32),
        slots=torch.tensor([0, 1], dtype=torch.int32),
        accepted=torch.tensor([2, 2], dtype=torch.int32),
        path=torch.tensor([[0, 2, 9], [1, 2, 9]], dtype=torch.int32),
    )


def changed(name, index, value):
    tensor = good()[name]
    tensor[index] = value
    return {name: tensor}


CACHE, SHARED = torch.zeros(2, 1, 8, 4), torch.zeros(100)
SHAPE = "have shape (nslots, kv_heads, max_tokens, head_dim) = (2, 1, 8, 4)"
REFUSED = {
    "no caches": (dict(k_caches=[], v_caches=[]), ValueError, "length of k_caches must be 1 to 2147483647; got 0"),
    "a missing cache": (dict(v_caches=[CACHE]), ValueError, "length of v_caches must be 2; got 1"),
    "cache dim": (
        dict(k_caches=[CACHE[0], CACHE]),
        ValueError,
        "k_caches[0] must have 4 dimensions; got shape (1, 8, 4)",
    ),
    "cache dtype": (
        dict(k_caches=[CACHE.double(), CACHE]),
        TypeError,
        "k_caches[0] must be float32, bfloat16 or float16; got float64",
    ),
    "another dtype": (
        dict(v_caches=[CACHE, CACHE.half()]),
        TypeError,
        "v_caches[1] must have the dtype of k_caches[0], float32; got float16",
    ),
    "cache slots": (
        dict(k_caches=[CACHE, torch.zeros(3, 1, 8, 4)]),
        ValueError,
        f"k_caches[1] must {SHAPE}; got (3, 1, 8, 4)",
    ),
    "cache stride": (
        dict(v_caches=[torch.zeros(2, 1, 4, 8).mT, CACHE]),
        TypeError,
        "v_caches[0] must have stride 1 in dimension -1; got 8",
    ),
    "one cache twice": (
        dict(v_caches=[SHARED[:64].view(2, 1, 8, 4), SHARED[:64].view(2, 1, 8, 4)]),
        TypeError,
        "v_caches[1] must share no memory with v_caches[0]; got one that does",
    ),
    "caches in one tensor": (
        dict(k_caches=torch.zeros(2, 2, 1, 8, 4)),
        TypeError,
        "k_caches must be a list of tensors; got Tensor",
    ),
    "cursor dtype": (dict(cursor=good()["cursor"].long()), TypeError, "cursor must be int32; got int64"),
    "cursor columns": (
        dict(cursor=good()["cursor"][:, :3]),
        ValueError,
        "columns of cursor must be 4 to 2147483647; got 3",
    ),
    "accepted shape": (
        dict(accepted=torch.zeros(3, dtype=torch.int32)),
        ValueError,
        "accepted must have shape (batch) = (2,); got (3,)",
    ),
    "path shape": (
        dict(path=torch.zeros(3, 3, dtype=torch.int32)),
        ValueError,
        "path must have shape (batch, max_window) = (2, 3); got (3, 3)",
    ),
    "path dtype": (dict(path=good()["path"].long()), TypeError, "path must be int32; got int64"),
    "slot out of range": (changed("slots", 1, 2), ValueError, "slots must be below nslots = 2; got 2 at index 1"),
    "slot twice": (changed("slots", 1, 0), ValueError, "slots must name a slot at most once; got 0 twice"),
    "no open step": (
        changed("cursor", (1, 3), 0),
        ValueError,
        "slot 1 must have an open step; got none (cursor_begin opens it)",
    ),
    "beyond max_tokens": (
        changed("cursor", (1, 0), 6),
        ValueError,
        "slot 1 must stay within max_tokens = 8; got 6 + 3 tokens",
    ),
    "accepted 4": (
        changed("accepted", 1, 4),
        ValueError,
        "accepted must be 0 to the open step's 3 tokens; got 4 for slot 1",
    ),
    "accepted -1": (
        changed("accepted", 0, -1),
        ValueError,
        "accepted must be 0 to the open step's 3 tokens; got -1 for slot 0",
    ),
    "path too short": (
        dict(path=good()["path"][:, :1]),
        ValueError,
        "path must hold the 2 accepted tokens of slot 0; got 1",
    ),
    "path goes down": (
        changed("path", (1, 1), 0),
        ValueError,
        "path must go up through the open step's tokens, 0 to 2; got 0 after 1 for slot 1",
    ),
    "path stands still": (
        changed("path", (1, 1), 1),
        ValueError,
        "path must go up through the open step's tokens, 0 to 2; got 1 after 1 for slot 1",
    ),
    "path beyond the step": (
        changed("path", (0, 1), 3),
        ValueError,
        "path must go up through the open step's tokens, 0 to 2; got 3 after 0 for slot 0",
    ),
    "path below 0": (
        changed("path", (0, 0), -1),
        ValueError,
        "path must go up through the open step's tokens, 0 to 2; got -1 after -1 for slot 0",
    ),
}


@pytest.mark.parametrize("change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(change, kind, sentence):
    inputs = good()
    assert_refused(kind, f"kv_compact: {sentence}", kv_compact, **(inputs | change))
    for name, value in (("k_caches", 5.0), ("v_caches", 6.0)):
        for cache in inputs[name]:
            assert_bitwise(cache, torch.full_like(cache, value))


def test_opcheck():
    torch.library.opcheck(torch.ops.llamba.kv_compact.default, tuple(make_inputs().values()))


def test_compiles_without_graph_break():
    inputs = make_inputs()
    expected = kv_compact_ref(**inputs)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(inputs):
        kv_compact(**inputs)
        return inputs["k_caches"][0] + 1

    assert_bitwise(compiled(inputs), expected[0][0] + 1)
    assert_same_caches((inputs["k_caches"], inputs["v_caches"]), expected)
