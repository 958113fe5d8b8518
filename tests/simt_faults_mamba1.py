"""Faults of the Mamba-1 kernels: see simt_faults.py."""

from simt_fault import Fault

CONV1D, MAMBA1 = "conv1d_verify/conv1d_verify_kernel.cuh", "mamba1_verify/mamba1_kernel.cuh"
MAMBA1_INPUTS, MAMBA1_LAUNCH = "mamba1_verify/mamba1_inputs.cuh", "mamba1_verify/mamba1_verify_launch.cu"
MAMBA1_TESTS, MAMBA1_DEVICE_TESTS = "tests/test_mamba1_verify.py", "tests/test_mamba1_device.py"

MAMBA1_FAULTS = [
    Fault(
        "conv1d: no barrier before the ids of raw inputs are read",
        CONV1D,
        "__syncthreads();  // ids are written before they are read",
        "",
        f"{MAMBA1_DEVICE_TESTS} -k schedules",
        "wrong",
    ),
    Fault(
        "conv1d: ids overwritten while others read them",
        CONV1D,
        "if (first > 0) __syncthreads();",
        "",
        f"{MAMBA1_DEVICE_TESTS} -k windows",
        "wrong",
    ),
    Fault(
        "conv1d: only the first head's blocks store rows of x",
        CONV1D,
        "place.keeps_rows = place.head % heads_per_x == 0;",
        "place.keeps_rows = place.head == 0;",
        f"{MAMBA1_TESTS} -k attention",
        "poison",
    ),
    Fault(
        "conv1d: a head of out takes the taps of its head of x",
        CONV1D,
        "const int64_t ahead = int64_t{place.head - place.x_head} * args.headdim;",
        "const int64_t ahead = 0;",
        f"{MAMBA1_TESTS} -k attention",
        "wrong",
    ),
    Fault(
        "mamba1: no barrier before the inputs are read",
        MAMBA1,
        "__syncthreads();  // (5)",
        "// (5)",
        f"{MAMBA1_DEVICE_TESTS} -k schedules",
        "wrong",
    ),
    Fault(
        "mamba1: a block's next sequence overwrites the step of the one before",
        MAMBA1,
        "if (i + 1 < params.sequences) __syncthreads();",
        "",
        f"{MAMBA1_DEVICE_TESTS} -k schedules",
        "wrong",
    ),
    Fault(
        "mamba1: only the first head's blocks store rows of B",
        MAMBA1_INPUTS,
        "row >= 0 && head * params.B.channels >= place.dim ? kept : -1",
        "row >= 0 && head == 0 ? kept : -1",
        f"{MAMBA1_TESTS} -k attention",
        "poison",
    ),
    Fault(
        "mamba1: four channels taken to share a head",
        MAMBA1,
        "if (ahead != 0) load_four(",
        "if (ahead > 1u << 30) load_four(",
        f"{MAMBA1_TESTS} -k heads",
        "wrong",
    ),
    Fault(
        "mamba1: the first head of a block is the first of all",
        MAMBA1_INPUTS,
        "head = (is_B ? first_B : first_C) + at;",
        "head = at;",
        f"{MAMBA1_DEVICE_TESTS} -k schedules",
        "wrong",
    ),
    Fault(
        "mamba1: the state is stored one token before the fold's end",
        MAMBA1,
        "chunk.tree ? 0 : step.fold - chunk.first;",
        "chunk.tree ? 0 : step.fold - 1 - chunk.first;",
        f"{MAMBA1_TESTS} -k fp64_reference[base-chain]",
        "wrong",
    ),
    Fault(
        "mamba1: a 16-bit state is not rounded on its way",
        MAMBA1,
        "if (shared.round[p] != 0) round_state",
        "if (shared.round[p] < 0) round_state",
        f"{MAMBA1_DEVICE_TESTS} -k windows",
        "wrong",
    ),
    Fault(
        "mamba1: outputs beyond ntokens are not written",
        MAMBA1,
        "step.valid ? step.ntokens : 0);",
        "step.valid ? args.max_ntokens : 0);",
        f"{MAMBA1_TESTS} -k padding",
        "wrong",
    ),
    Fault(
        "mamba1: too little shared memory for a tree's committed state",
        MAMBA1_INPUTS,
        "(tree ? 16 * threads : 0)",
        "(tree ? 12 * threads : 0)",
        f"{MAMBA1_TESTS} -k fp64_reference[base-tree]",
        "address",
    ),
    Fault(
        "mamba1: a block's heads are taken to begin with it",
        MAMBA1_LAUNCH,
        "(block_channels - 2) / channels + 2",
        "(block_channels - 1) / channels + 1",
        f"{MAMBA1_DEVICE_TESTS} -k schedules",
        "wrong",
    ),
]
