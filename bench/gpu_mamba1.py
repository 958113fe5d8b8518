"""Rows of mamba1_verify's GPU benchmark, and what is measured there: ours, and mamba_ssm's update called once a token.

The convolution is in neither: conv1d_verify and causal_conv1d_update come before.
"""

import importlib
import math
from functools import partial

import torch
from gpu_cases import DTYPES, NO_LIVE, Case
from gpu_check import checkpoint_ratios, error_ratio, worst
from gpu_harness import Prepared, copies_for, rotation
from gpu_ours import open_steps
from traffic import Mamba1Shape, mamba1_launch_work

from llamba_kernels.testing_mamba1 import make_mamba1_layer
from python_ref.mamba1_verify import mamba1_verify_ref

SHAPES = [Mamba1Shape(8192, 16, 1, 1), Mamba1Shape(5120, 16, 1, 1), Mamba1Shape(4096, 16, 64, 256)]
FOLD_EVERY = 2  # every live row costs an exponential for each element of the state


def cases():
    """The first shape in breadth, one row of the others; each with its one-token row."""
    grid = [
        (SHAPES[0], batch, ntokens, dtypes) for batch in (1, 64, 256) for ntokens in (1, 4) for dtypes in DTYPES[:2]
    ]
    grid += [(shape, 64, ntokens, DTYPES[0]) for shape in SHAPES[1:] for ntokens in (1, 4)]
    return [Case(shape, batch, ntokens, *dtypes) for shape, batch, ntokens, dtypes in grid]


class Layers:
    """Sets of arguments of one case, on the device, and the checks of what is computed from the first."""

    def __init__(self, case, device, session):
        shape = case.shape
        held = 4 * case.state_bytes + case.batch * (session.capacity + 3 * case.ntokens) * shape.d_inner * 8
        sizes = dict(d_inner=shape.d_inner, dstate=shape.dstate, B_heads=shape.B_heads, C_heads=shape.C_heads)
        dtypes = dict(dtype=getattr(torch, case.activations), checkpoint_dtype=getattr(torch, case.checkpoint))
        self.case, self.device, self.session, self.sets = case, device, session, []
        for _ in range(copies_for(case.state_bytes, held, device)):
            with torch.device(device):
                layer = make_mamba1_layer(case.batch, session=session, **sizes, **dtypes)
                for buffer in layer.buffers:
                    buffer.normal_()
                tokens = layer.tokens(case.batch, case.ntokens)
                self.sets.append((layer, tokens, torch.empty_like(tokens["x"])))
        self.slots = torch.arange(case.batch, dtype=torch.int32, device=device)

    def ours(self, mix):
        case = self.case
        steps = open_steps(self.session, case.ntokens, case.accepted, mix)
        sequence = torch.arange(case.batch)
        tables = [steps[(sequence + phase) % len(steps)].to(self.device) for phase in range(len(steps))]

        def call(copy, phase):
            layer, tokens, out = self.sets[copy]
            layer.cursor.table = tables[phase]
            return layer.verify(tokens, self.slots, out=out)

        turns = rotation(len(steps), len(self.sets), self.device)
        phases = [tuple(step) for step in steps[:, 1:3].tolist()]
        work = mamba1_launch_work(case.shape, case.batch, case.ntokens, phases, case.activations, case.checkpoint)
        details = {"fold_every": self.session.fold_every, "work": work}
        launches = [partial(call, copy, phase) for phase, copy in turns]
        cycle = math.lcm(len(steps), len(self.sets))
        return Prepared(launches, lambda: self.check(call, tables), cycle, work.nbytes, details)

    def reference(self, table):
        """(sequences, their y, their checkpoints after the step): of the first set, the first and the last one."""
        layer, tokens, _ = self.sets[0]
        chosen = torch.tensor(sorted({0, self.case.batch - 1}), device=self.device)
        few = [each[chosen].clone() for each in tokens.values()]
        checkpoint, x_rows, dt_rows, B_rows = (
            buffer[chosen].clone() for buffer in (layer.checkpoint, layer.x_rows, layer.dt_rows, layer.B_rows)
        )
        arguments = (*few, *layer.parameters.values(), checkpoint, x_rows, dt_rows, B_rows, table[chosen])
        options = layer.heads | {"fold_every": self.session.fold_every}
        with torch.device(self.device):
            y = mamba1_verify_ref(*arguments, torch.arange(len(chosen)), **options)
        return chosen, y, checkpoint

    def check(self, call, tables):
        """In every phase."""
        ratios = []
        for phase, table in enumerate(tables):
            chosen, expected, checkpoint = self.reference(table)
            y = call(0, phase)[chosen]
            stored = checkpoint_ratios(self.sets[0][0].checkpoint[chosen], checkpoint, y.dtype)
            ratios.append({"y": error_ratio(y, expected), **stored})
        return worst(ratios)

    def peer(self, mix):
        """The state is updated in place, token by token: nothing is kept to take a token back with."""
        operator = importlib.import_module("mamba_ssm.ops.triton.selective_state_update").selective_state_update

        def call(copy):
            layer, tokens, _ = self.sets[copy]
            p, outs = layer.parameters, []
            for t in range(self.case.ntokens):
                x, dt, B, C, z = (each[:, t] for each in tokens.values())
                options = dict(D=p["D"], z=z, dt_bias=p["dt_bias"], dt_softplus=True)
                outs.append(operator(layer.checkpoint, x, dt, p["A"], B, C, **options))
            return outs

        def check():
            table = open_steps(self.session, self.case.ntokens, self.case.accepted, NO_LIVE).to(self.device)
            chosen, expected, _ = self.reference(table.expand(self.case.batch, -1))
            return {"y": error_ratio(torch.stack(call(0), 1)[chosen], expected, tolerance=2e-2)}

        launches = [partial(call, copy) for _, copy in rotation(1, len(self.sets), self.device)]
        return Prepared(launches, check, len(self.sets))
