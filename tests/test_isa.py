"""The CPU kernels of every instruction set: which give the same bits, and no row depends on its neighbours."""

import itertools
import os
import subprocess
import sys

import mamba1_cases
import pytest
import ssu_cases
import torch
from helpers import assert_bitwise

from llamba_kernels import env
from llamba_kernels.cache import Session
from llamba_kernels.ops import (
    argmax,
    attention_step,
    causal_conv1d_update,
    gated_rms_norm,
    kv_compact,
    rms_norm,
    rope,
    silu_mul,
    skinny_linear,
    speculative_accept,
)
from llamba_kernels.testing import (
    make_argmax_inputs,
    make_attention_step_inputs,
    make_gated_rms_norm_inputs,
    make_kv_compact_inputs,
    make_mamba2_layer,
    make_rms_norm_inputs,
    make_rope_inputs,
    make_silu_mul_inputs,
    make_skinny_linear_inputs,
    make_speculative_accept_inputs,
)
from llamba_kernels.testing_dropins import make_causal_conv1d_update_inputs, some_checkpointing_ssu_outputs
from llamba_kernels.testing_scan import make_selective_scan_inputs, selective_scan_results

pytestmark = pytest.mark.cpu_only  # about the ordinary build and its CPU kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def outputs():
    """Every operator on sizes that fill vectors and on sizes that do not."""
    torch.manual_seed(0)
    results = {}
    for dtype in DTYPES:
        for width in (64, 85):
            case = f"{dtype} {width}"
            results[f"gated_rms_norm {case}"] = gated_rms_norm(*make_gated_rms_norm_inputs((5,), width, dtype=dtype))
            results[f"skinny_linear {case}"] = skinny_linear(*make_skinny_linear_inputs((5,), width, 11, dtype=dtype))
            inputs = make_rms_norm_inputs((5,), width, residual=True, dtype=dtype)
            results[f"rms_norm {case}"], results[f"rms_norm residual {case}"] = rms_norm(*inputs), inputs[-1]
            inputs = make_rope_inputs(2, 3, 2, width, width // 2 * 2, 9, dtype)
            results[f"rope {case}"], results[f"rope interleaved {case}"] = (
                rope(*inputs),
                rope(*inputs, interleaved=True),
            )
            results[f"silu_mul {case}"] = silu_mul(*make_silu_mul_inputs((5,), width, dtype))
            inputs = make_causal_conv1d_update_inputs(dim=width, seqlen=3, dtype=dtype)
            results[f"causal_conv1d_update {case}"] = causal_conv1d_update(**inputs)
            results[f"argmax {case}"] = argmax(*make_argmax_inputs((5,), 20 * width, dtype))
            inputs = make_speculative_accept_inputs(50, 3, width, dtype=dtype)
            results[f"accepted {case}"], results[f"next_token {case}"] = speculative_accept(*inputs)
            greedy = speculative_accept(*inputs[:3])
            results[f"greedy accepted {case}"], results[f"greedy next_token {case}"] = greedy
        inputs = make_kv_compact_inputs([7, 0], [5, 3], 1, dtype=dtype)
        kv_compact(**inputs)
        results[f"kv_compact {dtype}"] = inputs["k_caches"][0]
        for head_dim in (64, 5):
            results |= attention_outputs(head_dim, dtype)
        results |= mamba1_cases.outputs(dtype)
        for d_inner, dstate in ((64, 16), (21, 37)):
            found = selective_scan_results(make_selective_scan_inputs(2, 70, d_inner, dstate, dtype=dtype))
            results |= {f"selective_scan {dtype} {d_inner} {dstate} {name}": found[name] for name in found}
        for headdim, dstate in ((64, 64), (5, 48), (5, 96)):
            results |= mamba2_outputs(headdim, dstate, dtype)
        results |= ssu_cases.some_outputs(dtype) | some_checkpointing_ssu_outputs(dtype)
    return results


def attention_outputs(head_dim, dtype):
    """A chain's and a tree's outputs over one chunk of keys and over several."""
    results = {}
    for tree in (False, True):
        inputs = make_attention_step_inputs([20, 700], [3, 5], 4, 2, head_dim, tree=tree, dtype=dtype)
        results[f"attention_step {dtype} head_dim {head_dim} tree {tree}"] = attention_step(**inputs)
    return results


def mamba2_outputs(headdim, dstate, dtype):
    """Outputs and checkpoint of three steps of two slots, chains and a tree; all but the first step fold."""
    session, state = Session(max_window=4), torch.bfloat16 if dstate == 96 else torch.float32
    layer = make_mamba2_layer(2, 3, headdim, dstate, dtype=dtype, checkpoint_dtype=state, session=session)
    tree = torch.tensor([[-1, 0, 0, 1], [-1, -1, 9, 9]], dtype=torch.int32)
    slots, window = torch.arange(2, dtype=torch.int32), torch.tensor([4, 2], dtype=torch.int32)
    results = {}
    for step in range(3):
        layer.cursor.begin(slots, window)
        case = f"mamba2_verify {dtype} headdim {headdim} dstate {dstate} step {step}"
        results[case] = layer.verify(*layer.tokens(2, 4), slots, parents=tree if step == 1 else None)
        layer.cursor.commit(slots, torch.tensor([4, 1], dtype=torch.int32))
    return results | {f"{case} checkpoint": layer.checkpoint}


# ---- rows: beside any others a row has the same bits, or speculative decoding would not be exact ----

WIDTHS = (31, 64, 85)


def check_rows(call, *tensors):
    """call on rows of tensors, 64 each: 1 to 64 of them, in any order, against each by itself."""
    alone = torch.cat([call(*(tensor[i : i + 1].clone() for tensor in tensors)) for i in range(64)])
    for count in range(1, 65):
        rows = torch.randperm(64)[:count]
        assert_bitwise(call(*(tensor[rows] for tensor in tensors)), alone[rows])


def skinny_linear_rows():
    """Also in batches; widths that fill vectors and blocks and widths that do not."""
    for dtype in DTYPES:
        for width in (31, 64, 1237, 4160):
            x, weight, bias = make_skinny_linear_inputs((64,), width, 53, dtype=dtype)
            check_rows(lambda rows, weight=weight, bias=bias: skinny_linear(rows, weight, bias), x)
            alone = skinny_linear(x, weight, bias)
            for batch in (1, 2, 16, 64):
                shape = (batch, 64 // batch, -1)
                assert_bitwise(skinny_linear(x.view(shape), weight, bias), alone.view(shape))
                some = x.view(shape)[:, : 48 // batch + 1]  # where the batch is not one sequence of rows
                assert_bitwise(skinny_linear(some, weight, bias), alone.view(shape)[:, : 48 // batch + 1].contiguous())


def norm_rows():
    for dtype, width in itertools.product(DTYPES, WIDTHS):
        x, z, *rest = make_gated_rms_norm_inputs((64,), width, dtype=dtype)
        check_rows(lambda x, z, rest=rest: gated_rms_norm(x, z, *rest), x, z)
        x, weight, eps, residual = make_rms_norm_inputs((64,), width, True, dtype)
        check_rows(lambda x, r, weight=weight, eps=eps: torch.cat([rms_norm(x, weight, eps, r), r], -1), x, residual)


def elementwise_rows():
    for dtype, width in itertools.product(DTYPES, WIDTHS):
        check_rows(silu_mul, *make_silu_mul_inputs((64,), width, dtype))
        check_rows(argmax, *make_argmax_inputs((64,), 20 * width, dtype))
        x, cos, sin, positions = make_rope_inputs(64, 1, 3, width, width // 2 * 2, 99, dtype)
        for interleaved in (False, True):
            check_rows(
                lambda x, at, cos=cos, sin=sin, how=interleaved: rope(x, cos, sin, at, interleaved=how), x, positions
            )


def attention_step_rows():
    """64 sequences of ragged lengths, some beyond one chunk of keys, in windows of up to 3 tokens."""
    lengths, ntokens = [0, 1, 15, 16, 17, 63, 255, 256, 257, 300] * 6 + [5] * 4, [1, 2, 3, 1] * 16
    for dtype, head_dim in itertools.product(DTYPES, (64, 45)):
        inputs = make_attention_step_inputs(lengths, ntokens, 4, 2, head_dim, dtype=dtype)
        buffers = {name: inputs[name] for name in ("k_cache", "v_cache", "cursor")}
        check_rows(
            lambda q, k, v, slots, buffers=buffers: attention_step(q, k, v, slots=slots, **buffers),
            *(inputs[name] for name in ("q", "k", "v", "slots")),
        )


def mamba2_verify_rows():
    """64 sequences with ragged live rows and windows; none of the steps is committed, so each can be repeated."""
    for dtype, (headdim, dstate) in itertools.product(DTYPES, ((16, 16), (21, 48), (8, 128))):
        layer = make_mamba2_layer(64, 3, headdim, dstate, dtype=dtype, session=Session(max_window=3, fold_every=64))
        slots, counts = torch.arange(64, dtype=torch.int32), torch.tensor([1, 2, 3, 1] * 16, dtype=torch.int32)
        for step in range(4):
            layer.cursor.begin(slots, counts)
            layer.verify(*layer.tokens(64, 3), slots)
            if step < 3:
                layer.cursor.commit(slots, counts - (slots + step) % 2)
        check_rows(lambda xBC, dt, slots, layer=layer: layer.verify(xBC, dt, slots), *layer.tokens(64, 3), slots)


ROW_CHECKS = {
    "skinny_linear": skinny_linear_rows,
    "gated_rms_norm, rms_norm": norm_rows,
    "silu_mul, argmax, rope": elementwise_rows,
    "attention_step": attention_step_rows,
    "mamba2_verify": mamba2_verify_rows,
    "conv1d_verify, mamba1_verify": lambda: mamba1_cases.check_rows_with(check_rows),
    "selective_state_update": lambda: ssu_cases.check_rows_with(check_rows),
}


# ---- one process per set: the library decides when it loads. They are forked from one that has imported the rest ----

ISAS, UNKNOWN = ["avx512bf16", "avx512", "avx2", "generic"], ["foo", "AVX2"]


FORK = """
import os, sys
import torch, transformers.modeling_utils, transformers.generation  # most of what an import of the package takes
for isa in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        os.environ["LLAMBA_CPU_ISA"] = isa
        try:
            import test_isa
            report = test_isa.report()
        except ValueError as error:
            report = str(error)
        torch.save(report, os.path.join(sys.argv[1], isa))
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"{isa} failed")
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """By set: {"isa": the set that ran, "failed rows": [...], "outputs": {...}}, or the sentence that refused it."""
    folder = tmp_path_factory.mktemp("isa")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", FORK, folder, *ISAS, *UNKNOWN], env=environment, check=True)
    return {isa: torch.load(folder / isa) for isa in (*ISAS, *UNKNOWN)}


@pytest.fixture
def run_with(reports):
    def run(isa):
        if reports[isa]["isa"] != isa:
            pytest.skip(f"this processor has no {isa}")
        return reports[isa]

    return run


def report():
    failed = []
    for name, check in ROW_CHECKS.items():
        try:
            check()
        except AssertionError as error:
            failed.append(f"{name}: {error}")
    return {"isa": env.describe()["cpu kernels"].split()[0], "failed rows": failed, "outputs": outputs()}


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_has_the_same_bits_beside_any_others(isa, run_with):
    assert run_with(isa)["failed rows"] == []


@pytest.mark.parametrize("isa, other", list(itertools.pairwise(ISAS)))
def test_instruction_sets_agree(isa, other, run_with):
    """Bit for bit, but for two that add differently: generic rounds twice, avx512bf16 multiplies bfloat16 in pairs."""
    expected, actual = run_with(isa)["outputs"], run_with(other)["outputs"]
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        pairs = isa == "avx512bf16" and name.startswith("skinny_linear torch.bfloat16")
        if pairs or (other == "generic" and value.is_floating_point()):
            tolerance = 32 * torch.finfo(value.dtype).eps
            torch.testing.assert_close(actual[name], value, rtol=tolerance, atol=tolerance)
        else:
            assert_bitwise(actual[name], value)


OPERATORS = "argmax attention_step attention_step_refusals cursor gated_rms_norm kv_compact mamba2_verify mamba2_walk"
OPERATORS += " attention_window causal_conv1d_update causal_conv1d_update_refusals mamba1_materialize mamba1_refusals"
OPERATORS += " mamba1_verify mamba1_walk mamba2_verify_refusals checkpointing_ssu checkpointing_ssu_refusals"
OPERATORS += " materialize rms_norm rope selective_scan selective_scan_backward selective_scan_refusals"
OPERATORS += " selective_state_update silu_mul skinny_linear slot_copy speculative_accept speculative_accept_refusals"
OPERATORS += " step"


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_the_operators_tests_pass_on_every_instruction_set(isa):
    """All of them, walks and tolerances included, in a process that is forced to it."""
    environment = {**os.environ, "LLAMBA_CPU_ISA": isa}
    files = [os.path.join(os.path.dirname(__file__), f"test_{name}.py") for name in OPERATORS.split()]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *files], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-5000:]
    print(f"{isa}: {result.stdout.splitlines()[-1]}")


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_names_are_refused_at_import(name, reports):
    rule = "llamba_kernels: LLAMBA_CPU_ISA must be avx512bf16, avx512, avx2 or generic; got"
    assert reports[name] == f"{rule} {name}"


def test_env_says_what_was_asked_and_what_runs(monkeypatch):
    """Whatever the environment says after the import."""
    isa = env.native.llamba_isa_cpu().decode()
    monkeypatch.setenv("LLAMBA_CPU_ISA", "foo")
    lacking = f"{isa} (LLAMBA_CPU_ISA asked for another, which this processor lacks)"
    best = f"{isa} (the best this processor has)"
    for asked, line in ((None, best), ("", best), (isa, f"{isa} (LLAMBA_CPU_ISA={isa})"), ("another", lacking)):
        monkeypatch.setattr(env, "ASKED_ISA", asked)
        assert env.describe()["cpu kernels"] == line
