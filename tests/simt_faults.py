"""Faults seeded into the CUDA kernels by tests/test_simt_faults.py, and who must notice each, and how.

`old` occurs once in the file; `tests` are arguments of pytest; `how` is what the failing test's output says:
wrong      an assertion about values that are numbers
poison     one about NaN, the largest integer or -1: memory that nobody has written, or not yet
deadlock   a barrier that not all threads reach
executor   another sentence of the executor
address    AddressSanitizer's report
undefined  UndefinedBehaviorSanitizer's report
"""

from simt_fault import Fault
from simt_faults_mamba1 import MAMBA1_FAULTS

VERIFY = "mamba2_verify/mamba2_"
RECURRENT, MATMUL, STATE = f"{VERIFY}recurrent_kernel.cuh", f"{VERIFY}matmul_kernel.cuh", "common/state.cuh"
MATMUL_STATE = f"{VERIFY}matmul_state.cuh"
STEP, STORAGE, VISITS = "cursor/cursor_step.cuh", f"{VERIFY}matmul_storage.cuh", "cursor/cursor_visits.cuh"
RECURRENT_TESTS, MATMUL_TESTS = "tests/test_mamba2_recurrent.py", "tests/test_mamba2_matmul.py"
VERIFY_TESTS, CURSOR_TESTS = "tests/test_mamba2_verify.py", "tests/test_cursor.py"

BARRIER = "__syncthreads();"
FETCH = (
    "    if (kBulk && has_state && i + kStages < params.heads && threadIdx.x < 32) {\n"
    "      fetch_state(args, step, shared, place.head + kStages, place.first_dim, dims, state_bytes, "
    "i % kStages);\n    }\n"
)

FAULTS = [
    # ---- barriers ----
    Fault(
        "recurrent: no barrier between the conv and its readers",
        RECURRENT,
        "__syncthreads();  // (6)",
        "// (6)",
        f"{RECURRENT_TESTS} -k block_sizes",
        "wrong",
    ),
    Fault(
        "matmul: no barrier before G is used",
        MATMUL,
        "__syncthreads();  // dt, G and x, before M and y",
        "// dt, G and x, before M and y",
        f"{MATMUL_TESTS} -k blocks_of_every_shape",
        "poison",
    ),
    Fault(
        "sum over a block: no barrier before the warps' sums are read",
        "common/rows.cuh",
        "__syncthreads();  // every warp's sum is there",
        "// every warp's sum is there",
        "tests/test_rms_norm.py",
        "poison",
    ),
    Fault(
        "speculative_accept: warps' keys overwritten while others read them",
        "speculative_accept/speculative_accept_row.cuh",
        "__syncthreads();  // every thread has read the warps' keys",
        "// every thread has read the warps' keys",
        "tests/test_speculative_accept.py",
        "deadlock",
    ),
    Fault(
        "cursor_commit: no barrier before the old table is overwritten",
        "cursor/cursor_kernel.cuh",
        "__syncthreads();  // the whole old slot",
        "// the whole old slot",
        CURSOR_TESTS,
        "wrong",
    ),
    Fault(
        "speculative_accept: a barrier in a branch of some threads",
        "speculative_accept/speculative_accept_row.cuh",
        "__syncthreads();  // every warp's key is there",
        "if (threadIdx.x < 32) __syncthreads();",
        "tests/test_speculative_accept.py",
        "deadlock",
    ),
    # ---- bulk copies ----
    Fault(
        "matmul: no wait for the bulk copies of a state",
        MATMUL,
        "mbarrier_wait(shared.arrived() + i % kStages, i / kStages % 2);",
        "",
        f"{MATMUL_TESTS} -k blocks_of_every_shape",
        "executor",
    ),
    Fault(
        "matmul: the wait's parity does not follow the phases",
        MATMUL,
        "i / kStages % 2);",
        "0);",
        f"{MATMUL_TESTS} -k blocks_of_every_shape",
        "poison",
    ),
    Fault(
        "matmul: a bulk copy starts into a stage that is still being read",
        MATMUL,
        f"    {BARRIER}  // x, dt, M and the stage are read, before the next head's\n{FETCH}",
        f"{FETCH}    {BARRIER}\n",
        f"{MATMUL_TESTS} -k blocks_of_every_shape",
        "poison",
    ),
    Fault(
        "matmul: a bulk barrier is told fewer bytes than come",
        MATMUL_STATE,
        "row_bytes * dims);",
        "row_bytes * (dims - 1));",
        f"{MATMUL_TESTS} -k blocks_of_every_shape",
        "executor",
    ),
    # ---- lanes and fragments ----
    Fault(
        "matmul: two registers of an mma fragment swapped",
        MATMUL,
        "of_B[i][1] = below.x, of_B[i][2] = row.y",
        "of_B[i][1] = row.y, of_B[i][2] = below.x",
        f"{MATMUL_TESTS} -k fp64_reference[base-chain]",
        "wrong",
    ),
    Fault(
        "recurrent: a wrong lane in the reduction's shuffle",
        STATE,
        "__shfl_xor_sync(~0u, odd ? even_row : odd_row, kLanes / 4)",
        "__shfl_xor_sync(~0u, odd ? even_row : odd_row, kLanes / 2)",
        f"{VERIFY_TESTS} -k fp64_reference[base-chain]",
        "wrong",
    ),
    Fault(
        "matmul: a warp of the upper half of dstate starts at the lower",
        MATMUL,
        "place.first_n = warp / params.tiles * kMostWarpState;",
        "place.first_n = warp / params.tiles * (kMostWarpState - 16);",
        f"{MATMUL_TESTS} -k 256",
        "wrong",
    ),
    # ---- rows, slots, trees ----
    Fault(
        "both: a new token's row is the next one's",
        STEP,
        "args.cursor.width - 1 + step.live + i);",
        "args.cursor.width + step.live + i);",
        f"{VERIFY_TESTS} -k fp64_reference[base-chain]",
        "poison",
    ),
    Fault(
        "both: the conv reads one row late, a free one",
        STEP,
        "(args.cursor.width - 1 + t - back)",
        "(args.cursor.width + t - back)",
        f"{VERIFY_TESTS} -k fp64_reference[base-chain]",
        "poison",
    ),
    Fault(
        "both: padding is not left out",
        STEP,
        "step.valid = step.slot >= 0 && step.slot < args.cursor.nslots;",
        "step.valid = step.slot < args.cursor.nslots;",
        f"{VERIFY_TESTS} {MATMUL_TESTS} -k padding",
        "address",
    ),
    Fault(
        "both: a tree's parent is ignored",
        STEP,
        "if (t < step.live || step.parents == nullptr) return t - 1;",
        "if (t < step.live || step.ntokens > 0) return t - 1;",
        f"{VERIFY_TESTS} {MATMUL_TESTS} -k fp64_reference[base-tree]",
        "wrong",
    ),
    Fault(
        "recurrent: only the first group's blocks store rows of B",
        RECURRENT,
        "channels.keeps_B = place.dim == 0 && place.head % heads_per_B == 0;",
        "channels.keeps_B = place.dim == 0 && place.head == 0;",
        f"{VERIFY_TESTS} -k groups",
        "poison",
    ),
    Fault(
        "recurrent: a sibling goes on from its sibling's state",
        VISITS,
        "tree.walked == 0 ? kRestart : 0",
        "tree.walked < 0 ? kRestart : 0",
        f"{VERIFY_TESTS} -k fp64_reference[base-tree]",
        "wrong",
    ),
    Fault(
        "matmul: outputs beyond ntokens are not zero",
        MATMUL,
        "step.valid && token < step.ntokens; ++j",
        "step.valid; ++j",
        f"{MATMUL_TESTS} -k padding",
        "wrong",
    ),
    Fault(
        "recurrent: outputs beyond ntokens are not written",
        RECURRENT,
        "step.valid ? step.ntokens : 0);",
        "step.valid ? args.max_ntokens : 0);",
        f"{VERIFY_TESTS} -k padding",
        "wrong",
    ),
    # ---- state ----
    Fault(
        "recurrent: the state is stored one token before the fold's end",
        RECURRENT,
        "chunk.tree ? 0 : step.fold - chunk.first;",
        "chunk.tree ? 0 : step.fold - 1 - chunk.first;",
        f"{VERIFY_TESTS} -k fp64_reference[base-chain]",
        "wrong",
    ),
    Fault(
        "recurrent: heads of a checkpoint taken as contiguous",
        RECURRENT,
        "place.head * args.checkpoint_stride_head",
        "place.head * args.headdim * args.checkpoint_stride_dim",
        f"{VERIFY_TESTS} -k sliced",
        "wrong",
    ),
    Fault(
        "matmul: rows of a checkpoint taken as contiguous",
        MATMUL_STATE,
        "(place.dim + i) * args.checkpoint_stride_dim",
        "(place.dim + i) * args.dstate",
        f"{MATMUL_TESTS} -k no_vectors",
        "wrong",
    ),
    Fault(
        "recurrent: a 16-bit state in a tree is not rounded by its token's depth",
        STEP,
        "t >= step.live && step.parents != nullptr; ++ahead",
        "t < 0; ++ahead",
        f"{RECURRENT_TESTS} -k large_tree",
        "wrong",
    ),
    Fault(
        "matmul: a fresh head starts from what another has folded",
        MATMUL,
        "if (!has_state) state = {};",
        "",
        f"{MATMUL_TESTS}",
        "wrong",
    ),
    # ---- memory ----
    Fault(
        "matmul: too little shared memory for the halves' sums",
        STORAGE,
        "sizeof(float) * tiles * 32 * 4",
        "sizeof(float) * tiles * 32 * 3",
        f"{MATMUL_TESTS} -k 256",
        "address",
    ),
    Fault(
        "recurrent: no shared memory for a tree's committed state",
        f"{VERIFY}recurrent_launch.cu",
        "tree ? sizeof(RecurrentStorage<kState>)",
        "tree ? offsetof(RecurrentStorage<kState>, committed)",
        f"{VERIFY_TESTS} -k fp64_reference[base-tree]",
        "address",
    ),
    Fault(
        "recurrent: a shift by the number of a tree's visit",
        VISITS,
        "return chunk.tree ? tree.visits[v] : v | (chunk.emitted >> v & 1) * kEmit;",
        "const int32_t next = v | (chunk.emitted >> v & 1) * kEmit;\n  return chunk.tree ? tree.visits[v] : next;",
        f"{RECURRENT_TESTS} -k large_tree",
        "undefined",
    ),
    Fault(
        "rope: a position beyond the table is looked up",
        "rope/rope_kernel.cuh",
        "if (position >= args.npositions) position = -1;",
        "",
        "tests/test_rope.py",
        "address",
    ),
    Fault(
        "slot_copy: a source with more tokens than the buffers is copied",
        "slot_copy/slot_copy_kernel.cuh",
        "         header[kPosition] <= params.most_tokens;",
        "         header[kPosition] >= 0;",
        "tests/test_slot_copy.py",
        "wrong",
    ),
    Fault(
        "state_import: rows of the tail before the first token are written",
        "state_import/state_import_kernel.cuh",
        "if (row < 0 || row >= args.cursor.capacity) return;",
        "if (row >= args.cursor.capacity) return;",
        "tests/test_materialize.py",
        "wrong",
    ),
    *MAMBA1_FAULTS,
]
