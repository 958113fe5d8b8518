"""selective_scan over prompts, forward and with the backward, against two loops in torch.

"token loop": the recurrence token by token, which keeps little. "discretized loop": what transformers' own Mamba does
where mamba_ssm is missing, written anew: exp(dt A) and dt B x for all tokens first, then a loop over them. Both under
autograd for forward and backward; a dash where one would need more memory than MEMORY. The contenders take turns.
"""

import statistics
import time

import pytest
import torch
from harness import Rows, others_load, wait_for_quiet
from torch.nn.functional import silu, softplus

from llamba_kernels.ops import selective_scan
from llamba_kernels.testing_scan import make_selective_scan_inputs

D_INNER = {"mamba-130m": 1536, "mamba-2.8b": 5120}
DSTATE, TURNS = 16, 3
MEMORY = 3e8  # a few dozen times of what a processor caches: beyond that the loops measure page faults, for minutes
COLUMNS = ["case", "ms min", "ms median", "token loop ms", "x", "discretized loop ms", "x"]


def token_loop(x, dt, A, B, C, D, z, dt_bias, **heads):
    step, state, y = softplus(dt.float() + dt_bias), 0, []
    for t in range(x.shape[1]):
        decay = torch.exp(step[:, t, :, None] * A)
        state = decay * state + (step[:, t] * x[:, t]).unsqueeze(-1) * B[:, t, None].float()
        y.append((state @ C[:, t, :, None].float()).squeeze(-1))
    return ((torch.stack(y, 1) + D * x) * silu(z.float())).to(x.dtype)


def discretized_loop(x, dt, A, B, C, D, z, dt_bias, **heads):
    x_t, step = x.transpose(1, 2), softplus(dt.float() + dt_bias).transpose(1, 2)
    decay = torch.exp(A[:, None, :] * step[..., None])
    added = step[..., None] * B[:, None].float() * x_t[..., None].float()
    state, y = torch.zeros(x.shape[0], *A.shape), []
    for t in range(x.shape[1]):
        state = decay[:, :, t] * state + added[:, :, t]
        y.append((state.to(x.dtype) @ C[:, t, :, None])[:, :, 0])
    return ((torch.stack(y, -1) + D[:, None] * x_t) * silu(z.transpose(1, 2))).transpose(1, 2).to(x.dtype)


def needed(name, d_inner, length, backward):
    """Bytes that a contender keeps at once: so many tensors of the state's size per token."""
    tensors = {"ours": 0, "token loop": 4 if backward else 0, "discretized loop": 7 if backward else 3}[name]
    return tensors * length * d_inner * DSTATE * 4


def make_call(function, inputs, outer, backward):
    if not backward:
        return lambda: function(**inputs)
    wanted = {name: value.requires_grad_() if torch.is_tensor(value) else value for name, value in inputs.items()}
    leaves = [value for value in wanted.values() if torch.is_tensor(value)]
    return lambda: torch.autograd.grad(function(**wanted), leaves, outer)


def check(results, dtype):
    """All that were run agree, gradients too."""
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    first, *others = ([r] if torch.is_tensor(r) else r for r in results)
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            scale = theirs.abs().max().item()
            torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
@pytest.mark.parametrize("length", [128, 512, 2048])
@pytest.mark.parametrize("model", D_INNER)
def bench_selective_scan(request, benchmark, model, length, backward, dtype):
    d_inner = D_INNER[model]
    inputs = make_selective_scan_inputs(1, length, d_inner, DSTATE, dtype=dtype)
    outer = torch.randn(inputs["x"].shape).to(dtype)
    functions = {"ours": selective_scan, "token loop": token_loop, "discretized loop": discretized_loop}
    calls = {
        name: make_call(function, dict(inputs), outer, backward)
        for name, function in functions.items()
        if needed(name, d_inner, length, backward) <= MEMORY
    }
    check([call() for call in calls.values()], dtype)
    rows = request.config.stash[Rows.KEY]
    start = time.monotonic()
    load = wait_for_quiet(rows.patience)
    rows.patience -= time.monotonic() - start

    def run():
        times = {name: [] for name in calls}
        for _ in range(TURNS):
            for name, call in calls.items():
                for _ in range(5 if name == "ours" else 1):
                    start = time.perf_counter()
                    call()
                    times[name].append(1e3 * (time.perf_counter() - start))
        return times

    times = benchmark.pedantic(run, rounds=1)
    medians = {name: statistics.median(each) for name, each in times.items()}
    benchmark.extra_info.update(model=model, length=length, backward=backward, ms=medians, others_load=load)
    mark = " *" if max(load, others_load()) >= 0.1 else ""
    kind = "forward and backward" if backward else "forward"
    row = [f"{model}, {length} tokens, {str(dtype)[6:]}, {kind}{mark}"]
    row += [f"{min(times['ours']):.2f}", f"{medians['ours']:.2f}"]
    for name in ("token loop", "discretized loop"):
        other = medians.get(name)
        row += [f"{other:.1f}", f"{other / medians['ours']:.1f}"] if other else ["-", "-"]
    rows.tables.setdefault("selective_scan", [COLUMNS]).append(row)
