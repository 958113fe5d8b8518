"""The other contenders of the GPU benchmark, on the CPU: their reference, and calls to stand-ins.

A stand-in has the signature and the rules of another package's operator, as its source states them, and computes
what it says: so the benchmark's arguments and its checks are run where the package cannot be.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import silu, softplus

from llamba_kernels.cache import Session
from llamba_kernels.testing import make_mamba2_layer
from python_ref.mamba2_verify import mamba2_verify_ref

sys.path.append(str(Path(__file__).parents[1] / "bench"))
import bench_mamba2_verify_gpu as bench
import gpu_peers
from gpu_cases import Case
from gpu_harness import machine
from gpu_step import ssm_reference
from traffic import Shape

pytestmark = pytest.mark.cpu_only


CASE = Case(Shape(4, 16, 32, 2), 7, 4, "bfloat16", "float32")


def test_reference_without_convolution_is_python_ref_after_it():
    slot = torch.zeros(1, dtype=torch.int32)
    session = Session(max_window=5, fold_every=5)
    layer = make_mamba2_layer(1, 4, 16, 32, B_heads=2, C_heads=2, dtype=torch.float64, session=session)
    for buffer in (layer.checkpoint, layer.rows, layer.dt_rows):
        buffer.normal_()
    layer.cursor.reset(slot, torch.tensor([10], dtype=torch.int32))  # no live row; the tail is rows 0 to 2
    layer.cursor.begin(slot, torch.tensor([5], dtype=torch.int32))
    xBC, dt = layer.tokens(1, 5)
    p, start = layer.parameters, layer.checkpoint.clone()
    window = torch.cat([layer.rows[0, :3], xBC[0]]).unfold(0, 4, 1)
    conv = silu((window * p["conv_weight"]).sum(-1) + p["conv_bias"])
    x, B, C = (
        part.unflatten(-1, (-1, size))[None] for part, size in zip(conv.split(64, -1), (16, 32, 32), strict=True)
    )
    y, _ = ssm_reference(start, x, softplus(dt + p["dt_bias"]), p["A"], B, C, p["D"])
    expected = mamba2_verify_ref(*layer.arguments(xBC, dt, slot), **layer.heads, fold_every=5)
    torch.testing.assert_close(y, expected)


def per_head(tensor):
    """One value per head, broadcast over the rest without memory."""
    assert tensor.stride()[-1] == 0
    return tensor[..., 0]


def run(state, x, step, A, B, C, D):
    assert A.stride() == (1, 0, 0) and A.dtype == torch.float32 and D.stride() == (1, 0)
    return ssm_reference(state, x, step, A[:, 0, 0], B, C, per_head(D))


def mamba_ssm(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, state_batch_indices=None):
    assert x.shape == dt.shape == (len(state), *state.shape[1:3]) and dt_softplus
    step = softplus(per_head(dt).double() + per_head(dt_bias))
    y, states = run(state, x[:, None], step[:, None], A, B[:, None], C[:, None], D)
    state.copy_(states[-1])
    return y[:, 0].to(x.dtype)


def selective_state_update(state, x, dt, A, B, C, D, *, dt_bias, dt_softplus, out, cache_steps, **options):
    assert set(options) == {
        *("state_batch_indices", "disable_state_update"),
        *("intermediate_states_buffer", "intermediate_state_indices"),
    }
    assert dt.dtype == D.dtype == dt_bias.dtype and x.shape[1] == cache_steps and dt_softplus
    step = softplus(per_head(dt).double() + per_head(dt_bias))
    y, states = run(state[options["state_batch_indices"].long()], x, step, A, B, C, D)
    options["intermediate_states_buffer"].copy_(torch.stack(states, 1))
    return out.copy_(y)


def checkpointing_ssu(state, x_cache, B_cache, dt_cache, ring_start, prev, x, dt, A, B, C, out, **options):
    batch, ntokens, length = x.shape[0], x.shape[1], x_cache.shape[2]
    window = length - ntokens
    assert 0 <= ring_start.min() and ring_start.max() < length
    assert ntokens <= window <= 16 and dt_cache.dtype == torch.float32
    assert options["dt_bias"].dtype == options["D"].dtype and options["dt_softplus"]
    assert options["cb_scaled"].shape == (batch, 4, 32, 8) and options["cb_scaled"].dtype == x.dtype
    assert options["cumAdt_vec"].shape == (batch, 4, 16) and options["cb_old"].shape == (batch, 4, 32, window // 2)
    given = softplus(per_head(dt).double() + per_head(options["dt_bias"]))
    for b, slot in enumerate(options["state_batch_indices"].tolist()):
        old = (int(ring_start[slot]) + torch.arange(int(prev[slot]))) % length
        new = (int(ring_start[slot]) + int(prev[slot]) + torch.arange(ntokens)) % length
        tokens = [
            torch.cat([cache[slot][:, old].transpose(0, 1), fresh[b]])[None]
            for cache, fresh in ((x_cache, x), (dt_cache, given), (B_cache, B))
        ]
        zeros = torch.zeros_like(C[:1, :1]).expand(1, len(old), *C.shape[2:])
        y, states = run(state[slot][None], *tokens[:2], A, tokens[2], torch.cat([zeros, C[b : b + 1]], 1), options["D"])
        if len(old) + ntokens > window and len(old):
            state[slot] = states[len(old) - 1][0]
        for cache, fresh in ((x_cache, x), (dt_cache, given), (B_cache, B)):
            cache[slot][:, new] = fresh[b].transpose(0, 1).to(cache.dtype)
        out[b] = y[0, len(old) :]
    return out


MODULES = {
    "mamba_ssm.ops.triton.selective_state_update": SimpleNamespace(selective_state_update=mamba_ssm),
    "flashinfer.mamba": SimpleNamespace(
        selective_state_update=selective_state_update, checkpointing_ssu=checkpointing_ssu
    ),
}


@pytest.mark.parametrize("ntokens", [1, 4, 16])
@pytest.mark.parametrize("contender", ["mamba_ssm", "flashinfer mtp", "flashinfer ring"])
def test_peers_are_called_as_their_source_says(monkeypatch, contender, ntokens):
    monkeypatch.setattr(gpu_peers.importlib, "import_module", MODULES.__getitem__)
    case = Case(CASE.shape, CASE.batch, ntokens, CASE.activations, CASE.checkpoint)
    rows = bench.measure(contender, case, "cpu", machine("cpu", "a commit"))
    assert [row["error"] for row in rows] == [None] * len(rows)
    assert all(0 < row["error_ratios"]["y"] <= 1 for row in rows)
    assert all(row["us_median"] > 0 and row["nbytes"] is None for row in rows)


def test_a_peer_with_another_result_is_not_timed(monkeypatch):
    def no_bias(*arguments, **options):
        return selective_state_update(*arguments, **(options | {"dt_bias": torch.zeros(4)[:, None].expand(4, 16)}))

    modules = {"flashinfer.mamba": SimpleNamespace(selective_state_update=no_bias)}
    monkeypatch.setattr(gpu_peers.importlib, "import_module", modules.__getitem__)
    (row,) = bench.measure("flashinfer mtp", CASE, "cpu", machine("cpu", "a commit"))
    assert row["error"].startswith("AssertionError: flashinfer mtp must be within tolerance") and not row["us_min"]
