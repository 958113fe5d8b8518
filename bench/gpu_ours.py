"""Our mamba2_verify as a contender of the GPU benchmark: sequences spread over the phases of a session's cycle."""

import math
from functools import partial

import torch
from gpu_cases import FOLD_EVERY, NO_LIVE, phases
from gpu_check import checkpoint_ratios, error_ratio, worst
from gpu_harness import Prepared, copies_for, rotation
from traffic import launch_work

from llamba_kernels.cache import Cursor, Session
from llamba_kernels.ops import mamba2_verify
from llamba_kernels.testing import make_mamba2_layer
from python_ref.mamba2_verify import mamba2_verify_ref

SLOT = torch.zeros(1, dtype=torch.int32)


def open_steps(session, ntokens, accepted, mix):
    """Cursor rows with an open step, one per phase of the mix: (phases, entries) int32, on the CPU."""
    cursor = Cursor(1, session)
    count, kept = (torch.tensor([value], dtype=torch.int32) for value in (ntokens, accepted))
    if mix == NO_LIVE:
        cursor.reset(SLOT, torch.tensor([8 * session.fold_every], dtype=torch.int32))
        cursor.begin(SLOT, count)
        return cursor.table.clone()
    tables = []
    start = 2 * session.fold_every  # steps until all slots have a checkpoint: a fresh one would not be read
    for _ in range(start + len(phases(mix, session.fold_every, accepted))):
        cursor.begin(SLOT, count)
        tables.append(cursor.table[0].clone())
        cursor.commit(SLOT, kept)
    return torch.stack(tables[start:])


class Ours:
    """The layers of one case, measured by prepare(mix). algorithm: "recurrent" or "matmul"."""

    def __init__(self, case, device, algorithm, fold_every=None):
        self.case, self.device, self.algorithm = case, device, algorithm
        self.session = Session(max_window=case.ntokens, fold_every=fold_every or FOLD_EVERY[algorithm])
        shape, dtype = case.shape, getattr(torch, case.activations)
        sizes = {"nheads": shape.nheads, "headdim": shape.headdim, "dstate": shape.dstate}
        model = make_mamba2_layer(1, **sizes, B_heads=shape.ngroups, C_heads=shape.ngroups, dtype=dtype)
        # The CPU has one algorithm: there a dry run measures it under either name.
        called = {"algorithm": "recurrent" if device == "cpu" else algorithm}
        self.sizes = model.heads | {"fold_every": self.session.fold_every}
        self.options = self.sizes | called
        state = (case.batch, *sizes.values())
        rows = (case.batch, self.session.capacity)
        held = case.state_bytes + case.batch * (self.session.capacity + 3 * case.ntokens) * shape.conv_dim * 4
        random = partial(torch.randn, device=device, dtype=dtype)
        self.copies = []
        for _ in range(copies_for(case.state_bytes, held, device)):
            self.copies.append(
                {
                    "xBC": random(case.batch, case.ntokens, shape.conv_dim),
                    "dt": random(case.batch, case.ntokens, shape.nheads),
                    **{name: tensor.to(device) for name, tensor in model.parameters.items()},
                    "checkpoint": torch.randn(state, device=device, dtype=getattr(torch, case.checkpoint)),
                    "rows": random(*rows, shape.conv_dim),
                    "dt_rows": random(*rows, shape.nheads),
                }
            )
        self.outs = [random(case.batch, case.ntokens, *state[1:3]) for _ in self.copies]
        self.slots = torch.arange(case.batch, dtype=torch.int32, device=device)

    def prepare(self, mix):
        steps = open_steps(self.session, self.case.ntokens, self.case.accepted, mix)
        sequence = torch.arange(self.case.batch)
        tables = [steps[(sequence + phase) % len(steps)].to(self.device) for phase in range(len(steps))]
        launches = [
            partial(self.call, self.copies[copy], tables[phase], self.outs[copy])
            for phase, copy in rotation(len(steps), len(self.copies), self.device)
        ]
        case = self.case
        mixed = [tuple(step) for step in steps[:, 1:3].tolist()]
        work = launch_work(case.shape, case.batch, case.ntokens, mixed, case.activations, case.checkpoint)
        details = {"fold_every": self.session.fold_every, "algorithm": self.algorithm, "work": work}
        cycle = math.lcm(len(steps), len(self.copies))
        return Prepared(launches, partial(self.check, tables), cycle, work.nbytes, details)

    def call(self, arguments, table, out):
        return mamba2_verify(*arguments.values(), table, self.slots, **self.options, out=out)

    def check(self, tables):
        """y and the stored checkpoint of a few sequences; for a small batch in every phase, else in the first one."""
        return worst([self._check_step(table) for table in (tables if self.case.batch < len(tables) else tables[:1])])

    def _check_step(self, table):
        rows = sorted({0, self.case.batch - 1, int(table[:, 2].argmax()), int(table[:, 2].argmin())})
        chosen = torch.tensor(rows, device=self.device)
        arguments, out = self.copies[0], self.outs[0]
        few = {
            name: tensor[chosen].clone() if name in ("xBC", "dt", "checkpoint", "rows", "dt_rows") else tensor
            for name, tensor in arguments.items()
        }
        slots = torch.arange(len(chosen), dtype=torch.int32, device=self.device)
        with torch.device(self.device):
            expected = mamba2_verify_ref(*few.values(), table[chosen], slots, **self.sizes)
        out.fill_(float("nan"))
        self.call(arguments, table, out)
        checkpoint = arguments["checkpoint"][chosen], few["checkpoint"]
        return {"y": error_ratio(out[chosen], expected), **checkpoint_ratios(*checkpoint, out.dtype)}
