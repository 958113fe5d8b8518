"""attention_step: against the fp64 reference; a token's bits depend on its own path alone; traps."""

import itertools

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_close_to_ref, sliced, threads

from llamba_kernels.ops import attention_step
from llamba_kernels.testing import attention_step_formula, make_attention_step_inputs
from python_ref.attention_step import attention_step_ref

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EDGES = [0, 1, 15, 16, 239, 240, 255, 256, 257, 511, 512, 700]  # around blocks of 16 and chunks of 256
BASE = dict(positions=[37, 300], ntokens=[3, 4], nheads=4, kv_heads=2, head_dim=64, dtype=torch.float32)
CASES = {
    "base": {},
    "edges": dict(positions=EDGES, ntokens=[4, 1, 2, 3, 1, 5, 3, 1, 2, 4, 1, 3]),
    "8b": dict(positions=[530], ntokens=[4], nheads=32, kv_heads=8, head_dim=128),
    "smollm2-135m": dict(positions=[100], ntokens=[8], nheads=9, kv_heads=3),
    "bf16": dict(dtype=torch.bfloat16),
    "bf16 edges": dict(positions=EDGES[::3], ntokens=[3, 5, 1, 2], dtype=torch.bfloat16),
    "fp16": dict(dtype=torch.float16),
    "head_dim 80": dict(head_dim=80),
    "head_dim 128": dict(head_dim=128),
    "head_dim 5": dict(head_dim=5),
    "head_dim 1": dict(head_dim=1),
    "head_dim 255": dict(head_dim=255, positions=[20, 20]),
    "head_dim 256": dict(head_dim=256, positions=[20, 20]),
    "bf16 head_dim 5": dict(head_dim=5, dtype=torch.bfloat16),
    "fp16 head_dim 80": dict(head_dim=80, dtype=torch.float16),
    "one head": dict(nheads=1, kv_heads=1),
    "as many kv heads": dict(nheads=3, kv_heads=3),
    "8 heads share": dict(nheads=8, kv_heads=1),
    "7 heads share": dict(nheads=7, kv_heads=1, head_dim=48),
    "first tokens": dict(positions=[0, 0], ntokens=[1, 5]),
    "a long step": dict(positions=[200], ntokens=[90], nheads=2, kv_heads=1, head_dim=16),
}


def make_inputs(**change):
    return make_attention_step_inputs(**(BASE | change))


def copied(inputs):
    return {name: None if tensor is None else tensor.clone() for name, tensor in inputs.items()}


def call(inputs):
    """out and the caches after the step, of copies."""
    inputs = copied(inputs)
    out = attention_step(**inputs)
    return out, inputs["k_cache"], inputs["v_cache"]


def real(inputs):
    """Which (sequence, token) is part of a step."""
    ntokens = inputs["cursor"][inputs["slots"].long(), 3]
    return torch.arange(inputs["q"].shape[1]) < ntokens[:, None]


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_against_fp64_reference(change, tree):
    inputs = make_inputs(**change, tree=tree)
    out, k_cache, v_cache = call(inputs)
    expected, expected_k, expected_v = attention_step_ref(**inputs)
    assert out.dtype == inputs["q"].dtype
    assert_close_to_ref(out, expected, attention_step_formula(**copied(inputs)))
    assert_bitwise(out[~real(inputs)], torch.zeros_like(out[~real(inputs)]))
    assert_bitwise(k_cache, expected_k)
    assert_bitwise(v_cache, expected_v)


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_reference_against_torch(tree):
    inputs = make_inputs(dtype=torch.float64, tree=tree)
    torch.testing.assert_close(attention_step_ref(**inputs)[0], attention_step_formula(**copied(inputs)))


def test_scale():
    inputs = make_inputs(head_dim=64)
    out = call(inputs)[0]
    assert_bitwise(call(inputs | {"q": 2 * inputs["q"]})[0], attention_step(**copied(inputs), scale=0.25))
    assert_bitwise(attention_step(**copied(inputs), scale=0.125), out)
    even = attention_step(**copied(inputs), scale=0.0)
    torch.testing.assert_close(even.double(), attention_step_ref(**inputs, scale=0.0)[0], rtol=1e-6, atol=1e-6)


def one_by_one(inputs, b, path):
    """Sequence b's tokens of `path` as one-token steps, each committed before the next; returns their outs."""
    inputs = copied(inputs)
    slot = inputs["slots"][b]
    inputs["cursor"][slot, 3] = 1
    outs = []
    for t in path:
        step = {name: inputs[name][b : b + 1, t : t + 1] for name in ("q", "k", "v")}
        outs.append(attention_step(**(inputs | step | {"slots": slot[None], "parents": None}))[0])
        inputs["cursor"][slot, 0] += 1
    return torch.cat(outs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nheads, kv_heads, head_dim", [(4, 1, 64), (3, 3, 80), (8, 2, 5)])
def test_a_chain_equals_its_tokens_one_by_one(nheads, kv_heads, head_dim, dtype):
    """Bit for bit, outs and caches, across the edges of blocks and chunks."""
    change = dict(nheads=nheads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype)
    inputs = make_inputs(positions=EDGES, ntokens=[7] * len(EDGES), **change)
    out = call(inputs)[0]
    for b in range(len(EDGES)):
        assert_bitwise(one_by_one(inputs, b, range(7)), out[b])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 5])
def test_every_path_of_a_tree_equals_its_tokens_one_by_one(head_dim, dtype):
    """A node's ancestors lie anywhere in the step's cache rows; the sums must not notice."""
    ntokens = 12
    inputs = make_inputs(positions=EDGES, ntokens=[ntokens] * len(EDGES), head_dim=head_dim, dtype=dtype, tree=True)
    out = call(inputs)[0]
    for b in range(len(EDGES)):
        parents = inputs["parents"][b].tolist()
        leaves = set(range(ntokens)) - set(parents)
        for leaf in leaves:
            path = [leaf]
            while parents[path[0]] >= 0:
                path.insert(0, parents[path[0]])
            assert_bitwise(one_by_one(inputs, b, path), out[b, path])


def test_a_tree_that_is_a_chain():
    inputs = make_inputs(positions=EDGES, ntokens=[5] * len(EDGES))
    chain = torch.arange(-1, 4, dtype=torch.int32).expand(len(EDGES), 5)
    assert_bitwise(call(inputs | {"parents": chain})[0], call(inputs)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_a_sequence_has_the_same_bits_in_every_batch(tree, dtype):
    """Alone, shuffled, with padding, in a wider window, on 1 to 3 threads."""
    inputs = make_inputs(positions=EDGES, ntokens=[1 + b % 5 for b in range(len(EDGES))], tree=tree, dtype=dtype)
    count = len(EDGES)
    per_sequence = [name for name in ("q", "k", "v", "slots", "parents") if inputs[name] is not None]
    with threads(1):
        out, k_cache, v_cache = call(inputs)
    for number in (2, 3):
        with threads(number):
            for actual, expected in zip(call(inputs), (out, k_cache, v_cache), strict=True):
                assert_bitwise(actual, expected)
    order = torch.randperm(count)
    shuffled = call(inputs | {name: inputs[name][order] for name in per_sequence})
    assert_bitwise(shuffled[0], out[order])
    assert_bitwise(shuffled[1], k_cache)
    for b in range(count):
        alone = call(inputs | {name: inputs[name][b : b + 1] for name in per_sequence})
        assert_bitwise(alone[0][0], out[b])
    padded = {name: torch.cat([inputs[name], inputs[name][:1]]) for name in per_sequence}
    padded["slots"][-1] = -3
    if tree:
        padded["parents"][-1] = 77
    for name in ("q", "k", "v"):
        padded[name] = torch.nn.functional.pad(padded[name], (0, 0, 0, 0, 0, 2), value=float("nan"))
    if tree:
        padded["parents"] = torch.nn.functional.pad(padded["parents"], (0, 2), value=99)
    wide = call(inputs | padded)
    assert_bitwise(wide[0], torch.nn.functional.pad(torch.cat([out, torch.zeros_like(out[:1])]), (0, 0, 0, 0, 0, 2)))
    assert_bitwise(wide[1], k_cache)
    assert_bitwise(wide[2], v_cache)


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_contexts_on_several_threads(dtype):
    inputs = make_inputs(positions=[3000], ntokens=[4], nheads=8, kv_heads=2, dtype=dtype)
    with threads(1):
        out = call(inputs)[0]
    for number in (2, 3):
        with threads(number):
            assert_bitwise(call(inputs)[0], out)
    assert_bitwise(one_by_one(inputs, 0, range(4)), out[0])


def test_a_query_has_the_same_bits_in_every_group():
    """Query heads that read the same kv head, one, three or eight at a time."""
    inputs = make_inputs(positions=[300, 20], nheads=8, kv_heads=1)
    out = call(inputs)[0]
    for first, count in itertools.product(range(8), (1, 3)):
        some = call(inputs | {"q": inputs["q"][:, :, first : first + count]})[0]
        assert_bitwise(some, out[:, :, first : first + count])


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_nan_spreads_along_the_path_only(tree):
    inputs = make_inputs(positions=[37, 300], ntokens=[6, 6], tree=tree)
    out = call(inputs)[0]
    parents = inputs["parents"] if tree else torch.arange(-1, 5).expand(2, 6)
    for name in ("q", "k", "v"):
        spoiled_inputs = copied(inputs)
        spoiled_inputs[name][1, 2, -1] = float("nan")
        hit = torch.zeros(2, 6, dtype=torch.bool)
        hit[1, 2] = True
        for t in range(3, 6):
            hit[1, t] = name != "q" and parents[1, t] >= 0 and hit[1, parents[1, t]]
        spoiled = call(spoiled_inputs)[0]
        group = spoiled[hit][:, -1 if name == "q" else 2 :]
        assert group.isnan().all()
        assert_bitwise(spoiled[~hit], out[~hit])
        assert_bitwise(spoiled[:, :, :2], out[:, :, :2])  # heads of the other kv head


def test_extreme_scores():
    """One key far above all others, and all keys alike: finite and right."""
    inputs = make_inputs(positions=[600, 300], ntokens=[1, 1])
    inputs["q"][0] *= 1e4
    inputs["q"][1] = 0
    out, expected = call(inputs)[0], attention_step_ref(**inputs)[0]
    assert out.isfinite().all()
    for b in range(2):
        assert_close_to_ref(out[b], expected[b], attention_step_formula(**copied(inputs))[b])


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [32, 45])
def test_strides_and_bystanders(head_dim, dtype, tree):
    """q, k, v as columns of one projection, caches and out inside larger tensors, of which the rest stays."""
    inputs = make_inputs(positions=[37, 300, 256], ntokens=[3, 4, 1], head_dim=head_dim, dtype=dtype, tree=tree)
    expected, k_cache, v_cache = call(inputs)
    given = {name: None if tensor is None else sliced(tensor) for name, tensor in inputs.items()}
    fused = torch.cat([inputs["q"], inputs["k"], inputs["v"]], 2)
    given |= dict(zip("qkv", fused.split([4, 2, 2], 2), strict=True))
    surrounded = {name: Surrounded(inputs[name], fill=7.0) for name in ("k_cache", "v_cache")}
    surrounded["out"] = Surrounded(torch.zeros_like(expected), fill=7.0)
    result = attention_step(**(given | {name: s.inner for name, s in surrounded.items()}))
    assert result is surrounded["out"].inner
    assert_bitwise(result, expected)
    assert_bitwise(surrounded["k_cache"].inner, k_cache)
    assert_bitwise(surrounded["v_cache"].inner, v_cache)
    for s in surrounded.values():
        s.assert_surroundings_untouched()


def test_no_sequences():
    inputs = make_inputs()
    nothing = {name: inputs[name][:0] for name in ("q", "k", "v", "slots")}
    assert call(inputs | nothing)[0].shape == (0, 4, 4, 64)


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_opcheck(tree):
    inputs = make_inputs(tree=tree)
    parents, out = inputs.pop("parents"), torch.empty_like(inputs["q"])
    torch.library.opcheck(torch.ops.llamba.attention_step.default, (*inputs.values(), 0.125, 7, parents, out))


def test_compiles_without_graph_break():
    inputs = make_inputs()
    expected, k_cache, _ = call(inputs)
    compiled = torch.compile(lambda inputs: attention_step(**inputs) + 1, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(inputs), expected + 1)
    assert_bitwise(inputs["k_cache"], k_cache)
