"""The CPU kernels of every instruction set: AVX2 gives the bits of AVX-512, the portable set the same values."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import assert_bitwise

from llamba_kernels import env
from llamba_kernels.cache import Session
from llamba_kernels.ops import (
    argmax,
    attention_step,
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


def outputs():
    """Every operator on sizes that fill vectors and on sizes that do not."""
    torch.manual_seed(0)
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
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
        for headdim, dstate in ((64, 64), (5, 48), (5, 96)):
            results |= mamba2_outputs(headdim, dstate, dtype)
    return results


def attention_outputs(head_dim, dtype):
    """A chain's and a tree's outputs over one chunk of keys and over several."""
    results = {}
    for tree in (False, True):
        inputs = make_attention_step_inputs([20, 700], [3, 5], 4, 2, head_dim, tree=tree, dtype=dtype)
        results[f"attention_step {dtype} head_dim {head_dim} tree {tree}"] = attention_step(**inputs)
    return results


def mamba2_outputs(headdim, dstate, dtype):
    """Outputs and checkpoint of three steps of two slots; all but the first step fold."""
    layer = make_mamba2_layer(2, 3, headdim, dstate, dtype=dtype, session=Session(max_window=4))
    slots, window = torch.arange(2, dtype=torch.int32), torch.tensor([4, 2], dtype=torch.int32)
    results = {}
    for step in range(3):
        layer.cursor.begin(slots, window)
        case = f"mamba2_verify {dtype} headdim {headdim} dstate {dstate} step {step}"
        results[case] = layer.verify(*layer.tokens(2, 4), slots)
        layer.cursor.commit(slots, torch.tensor([4, 1], dtype=torch.int32))
    return results | {f"{case} checkpoint": layer.checkpoint}


@pytest.fixture(scope="module")
def best():
    return outputs()


@pytest.mark.parametrize("isa", ["avx2", "generic"])
def test_other_instruction_sets(isa, best, tmp_path):
    file = tmp_path / "outputs.pt"
    environment = {**os.environ, "LLAMBA_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, __file__, file], env=environment, check=True)
    saved = torch.load(file)
    if saved.pop("isa") != isa:
        pytest.skip(f"this processor has no {isa}")
    for name, expected in best.items():
        if isa == "generic" and expected.is_floating_point():  # it has no fused multiply-add
            tolerance = 32 * torch.finfo(expected.dtype).eps
            torch.testing.assert_close(saved[name], expected, rtol=tolerance, atol=tolerance)
        else:
            assert_bitwise(saved[name], expected)


@pytest.mark.parametrize("name", ["foo", "AVX2"])
def test_unknown_names_are_refused_at_import(name):
    environment = {**os.environ, "LLAMBA_CPU_ISA": name, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", "import llamba_kernels._load"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    sentence = f"ValueError: llamba_kernels: LLAMBA_CPU_ISA must be avx512, avx2 or generic; got {name}"
    assert result.returncode == 1 and result.stderr.splitlines()[-1] == sentence


def test_env_says_what_was_asked_and_what_runs(monkeypatch):
    """Whatever the environment says after the import."""
    isa = env.native.llamba_isa_cpu().decode()
    monkeypatch.setenv("LLAMBA_CPU_ISA", "foo")
    lacking = f"{isa} (LLAMBA_CPU_ISA asked for another, which this processor lacks)"
    best = f"{isa} (the best this processor has)"
    for asked, line in ((None, best), ("", best), (isa, f"{isa} (LLAMBA_CPU_ISA={isa})"), ("another", lacking)):
        monkeypatch.setattr(env, "ASKED_ISA", asked)
        assert env.describe()["cpu kernels"] == line


if __name__ == "__main__":
    torch.save({"isa": env.describe()["cpu kernels"].split()[0], **outputs()}, sys.argv[1])
