"""Other ways to verify a window, for the ratios of the GPU benchmark. Each is imported when it is measured.

All take x, B and C after the convolution, which our operator computes in the same launch: ours does more. Their y is
checked against ssm_reference before they are timed.
"""

import functools
import importlib.metadata
import importlib.util
import math

import torch
from gpu_cases import ring_phases
from gpu_harness import Prepared, rotation, times_us
from gpu_step import steps_for

RING_WINDOW = 16  # the most live rows that FlashInfer's ring holds
TILE_SECONDS = 0.03  # of replays for each tile of the snapshot's search


def snapshot(case, device, mix, tile=None):
    from snapshot_triton import TILES, snapshot_verify

    states = case.ntokens + 1
    steps = steps_for(case, device, states, stride=states)
    source = torch.arange(case.batch, dtype=torch.int32, device=device) * states
    target = (source[:, None] + torch.arange(1, states, device=device)).int()

    def call(step, tile):
        inputs = (step.x, step.dt, step.A, step.B, step.C, step.D, step.dt_bias)
        return snapshot_verify(step.state, source, target, *inputs, step.out, tile)

    def launches(tile):
        return [functools.partial(call, steps[copy], tile) for _, copy in rotation(1, len(steps), device)]

    tile = tile or min(TILES, key=lambda each: times_us(launches(each), device, len(steps), TILE_SECONDS)[0])
    check = functools.partial(steps[0].check, functools.partial(call, steps[0], tile))
    return Prepared(launches(tile), check, len(steps), details={"tile": list(tile)})


def mamba_ssm(case, device, mix):
    """ntokens calls that update the state in place: it keeps nothing to take a token back with."""
    operator = importlib.import_module("mamba_ssm.ops.triton.selective_state_update").selective_state_update
    steps = steps_for(case, device, 1)

    def call(step):
        outs = []
        for t in range(case.ntokens):
            arguments = (step.x[:, t], step.wide_dt[:, t], step.wide_A, step.B[:, t], step.C[:, t], step.wide_D)
            outs.append(operator(step.state, *arguments, dt_bias=step.wide_bias, dt_softplus=True))
        return outs

    launches = [functools.partial(call, steps[copy]) for _, copy in rotation(1, len(steps), device)]
    return Prepared(launches, lambda: steps[0].check(lambda: torch.stack(launches[0](), 1)), len(steps))


def flashinfer_mtp(case, device, mix):
    """selective_state_update for several tokens: a full state per token into a buffer; the commit's copy not timed."""
    operator = importlib.import_module("flashinfer.mamba").selective_state_update
    states = case.ntokens + 1
    steps = steps_for(case, device, states)
    slots = torch.arange(case.batch, dtype=torch.int32, device=device)
    buffers = [step.state.new_empty(case.batch, case.ntokens, *step.state.shape[1:]) for step in steps]
    wide_dt = [step.dt.float()[..., None].expand(step.wide_dt.shape) for step in steps]  # its dtype must be D's

    def call(copy):
        step = steps[copy]
        return operator(
            step.state,
            step.x,
            wide_dt[copy],
            step.wide_A,
            step.B,
            step.C,
            step.wide_D,
            dt_bias=step.wide_bias,
            dt_softplus=True,
            state_batch_indices=slots,
            out=step.out,
            disable_state_update=True,
            intermediate_states_buffer=buffers[copy],
            intermediate_state_indices=slots,
            cache_steps=case.ntokens,
        )

    launches = [functools.partial(call, copy) for _, copy in rotation(1, len(steps), device)]
    return Prepared(launches, functools.partial(steps[0].check, launches[0]), len(steps))


def flashinfer_ring(case, device, mix):
    """checkpointing_ssu: live rows in a ring, the state written when the ring is full; its cycle at its window."""
    operator = importlib.import_module("flashinfer.mamba").checkpointing_ssu
    shape, batch, length = case.shape, case.batch, RING_WINDOW + case.ntokens
    steps, live = steps_for(case, device, 1), ring_phases(mix, RING_WINDOW, case.ntokens, case.accepted)
    sequence = torch.arange(batch)
    phases = [
        torch.tensor(live, dtype=torch.int32)[(sequence + phase) % len(live)].to(device) for phase in range(len(live))
    ]
    starts, slots = (7 * sequence % length).int().to(device), sequence.int().to(device)
    random = functools.partial(torch.randn, device=device)
    rings = [
        (
            random(batch, shape.nheads, length, shape.headdim, dtype=step.x.dtype),
            random(batch, shape.ngroups, length, shape.dstate, dtype=step.x.dtype),
            random(batch, shape.nheads, length).abs() / 16,
        )
        for step in steps
    ]
    scratch = {  # lets it choose its two-kernel form
        "cb_scaled": steps[0].x.new_empty(batch, shape.nheads, 32, 8),
        "cumAdt_vec": torch.empty(batch, shape.nheads, 16, device=device),
        "cb_old": steps[0].x.new_empty(batch, shape.nheads, 32, RING_WINDOW // 2),
    }

    def call(phase, copy):
        step = steps[copy]
        tokens = (step.x, step.wide_dt, step.wide_A, step.B, step.C, step.out)
        options = {"D": step.wide_D, "dt_bias": step.wide_bias, "dt_softplus": True, "state_batch_indices": slots}
        return operator(step.state, *rings[copy], starts, phases[phase], *tokens, **options, **scratch)

    def past(b):
        rows = (int(starts[b]) + torch.arange(int(phases[0][b]), device=device)) % length
        x, B, step = (ring[b][:, rows].transpose(0, 1)[None] for ring in rings[0])
        return x, step, B

    launches = [functools.partial(call, *each) for each in rotation(len(live), len(steps), device)]
    check = functools.partial(steps[0].check, launches[0], past)
    return Prepared(launches, check, math.lcm(len(live), len(steps)), details={"fold_every": RING_WINDOW})


PEERS = {  # name: (package, prepare(case, device, mix), does the mix matter)
    "snapshot": ("triton", snapshot, False),
    "mamba_ssm": ("mamba_ssm", mamba_ssm, False),
    "flashinfer mtp": ("flashinfer", flashinfer_mtp, False),
    "flashinfer ring": ("flashinfer", flashinfer_ring, True),
}
DISTRIBUTIONS = {"triton": "triton", "mamba_ssm": "mamba-ssm", "flashinfer": "flashinfer-python"}


def versions():
    """What of the peers is installed, for the results' `machine`."""
    found = {package: importlib.util.find_spec(package) is not None for package in DISTRIBUTIONS}
    return {package: _version(package) if there else "not installed" for package, there in found.items()}


def _version(package):
    try:
        return importlib.metadata.version(DISTRIBUTIONS[package])
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
