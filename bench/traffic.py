"""What a step of mamba2_verify must move and compute, and the least time that takes: pure arithmetic, no torch.

The model is the kernel's contract, not one kernel: the checkpoint is read once and written only by a folding step.
"""

from dataclasses import dataclass, fields

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
WIDTH = 4  # taps of the causal convolution

# Per multiprocessor and clock: fp32 instruction lanes, and bf16 tensor-core operations with fp32 sums (a multiply and
# an add are two). By compute capability.
RATES = {"8.0": (64, 2048), "8.6": (128, 512), "8.9": (128, 512), "9.0": (128, 4096)}


@dataclass(frozen=True)
class Shape:
    """Sizes of a Mamba-2 layer; B and C have ngroups heads each, x has nheads."""

    nheads: int
    headdim: int
    dstate: int
    ngroups: int

    def __str__(self):
        return f"h{self.nheads} d{self.headdim} n{self.dstate} g{self.ngroups}"

    @property
    def conv_dim(self) -> int:
        return self.nheads * self.headdim + 2 * self.ngroups * self.dstate

    @property
    def state_elements(self) -> int:
        return self.nheads * self.headdim * self.dstate


@dataclass(frozen=True)
class Work:
    """Of one launch, or of one sequence in it."""

    nbytes: float  # read and written, each byte once
    slots: float  # fp32 instructions of the recurrent form, one lane each
    flops: float  # tensor-core operations of the closed form, at the bf16 rate

    def __add__(self, other):
        return Work(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __mul__(self, factor):
        return Work(*(getattr(self, field.name) * factor for field in fields(self)))


def step_work(shape, ntokens, live, fold, activations, checkpoint) -> Work:
    """One sequence's step: `ntokens` new tokens after `live` rows, the oldest `fold` of which fold.

    bytes: the checkpoint (twice if it folds); per new token xBC and dt read and y written; rows: the conv's tail and
    the live rows read, the new ones written. Instructions per state element: a live row B dt x and a fused
    multiply-add, a new token one more for y. Flops: y from the checkpoint (three products where an fp32 checkpoint is
    split into bf16 pieces), C B^T per group, its product with x, and the folded rows' outer products.
    """
    row = (shape.conv_dim + shape.nheads) * ITEMSIZE[activations]
    out = shape.nheads * shape.headdim * ITEMSIZE[activations]
    state = shape.state_elements * ITEMSIZE[checkpoint]
    pairs = ntokens * live + ntokens * (ntokens + 1) / 2  # a new token and a row or new token that it sees
    pieces = 3 if checkpoint == "float32" else 1
    return Work(
        nbytes=state * (2 if fold else 1) + ntokens * (row + out) + (WIDTH - 1 + live + ntokens) * row,
        slots=shape.state_elements * (2 * live + 3 * ntokens),
        flops=2 * shape.state_elements * (pieces * ntokens + fold)
        + 2 * pairs * (shape.ngroups * shape.dstate + shape.nheads * shape.headdim),
    )


def launch_work(shape, batch, ntokens, phases, activations, checkpoint) -> Work:
    """A launch of `batch` sequences; phases: the (live, fold) that a step has, each as often as it occurs."""
    steps = [step_work(shape, ntokens, live, fold, activations, checkpoint) for live, fold in phases]
    parameters = shape.conv_dim * (WIDTH + 1) * ITEMSIZE[activations] + 3 * shape.nheads * 4
    return sum(steps, Work(0, 0, 0)) * (batch / len(steps)) + Work(parameters, 0, 0)


@dataclass(frozen=True)
class Mamba1Shape:
    """Sizes of a Mamba-1 layer."""

    d_inner: int
    dstate: int
    B_heads: int
    C_heads: int

    def __str__(self):
        return f"d{self.d_inner} n{self.dstate} B{self.B_heads} C{self.C_heads}"

    @property
    def state_elements(self) -> int:
        return self.d_inner * self.dstate


def mamba1_launch_work(shape, batch, ntokens, phases, activations, checkpoint) -> Work:
    """A launch of mamba1_verify, as launch_work.

    bytes: the checkpoint (twice if it folds); per new token x, dt, z, B and C read and out written; of live and new
    tokens the rows of x, dt and B; A once. Instructions per state element: for a live row dt A, its exponential, decay
    times state, a fused multiply-add; for a new token one more.
    """
    size, steps = ITEMSIZE[activations], []
    row = (2 * shape.d_inner + shape.B_heads * shape.dstate) * size
    token = row + (2 * shape.d_inner + shape.C_heads * shape.dstate) * size
    for live, fold in phases:
        state = shape.state_elements * ITEMSIZE[checkpoint] * (2 if fold else 1)
        nbytes = state + ntokens * token + (live + ntokens) * row
        steps.append(Work(nbytes, shape.state_elements * (4 * live + 5 * ntokens), 0))
    parameters = 4 * (shape.state_elements + 2 * shape.d_inner)
    return sum(steps, Work(0, 0, 0)) * (batch / len(steps)) + Work(parameters, 0, 0)


def bound_us(work, algorithm, gb_per_s, capability, sms, clock_mhz):
    """(microseconds, "bytes" or "operations"): no kernel of this algorithm can be faster on such a device.

    gb_per_s: bandwidth in 1e9 bytes per second. Devices that RATES does not know are bound by bytes alone.
    """
    by_bytes = work.nbytes / gb_per_s / 1e3
    if capability not in RATES:
        return by_bytes, "bytes"
    lanes, tensor = RATES[capability]
    count, rate = (work.flops, tensor) if algorithm == "matmul" else (work.slots, lanes)
    by_operations = count / (rate * sms * clock_mhz)
    return max((by_bytes, "bytes"), (by_operations, "operations"))
