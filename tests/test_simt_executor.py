"""The executor of csrc/simt: what it promises to notice, its schedules, warps and tensor cores, by tiny kernels."""

import math
import os
import re
import subprocess

import pytest
import sanitized

SEEDS = range(1, 9)


@pytest.fixture(scope="module")
def executor(tmp_path_factory):
    """executor(name, seed): what the kernel of simt_executor.cpp prints, or the sanitizer's report."""
    sanitized.runtime()
    program = str(tmp_path_factory.mktemp("simt") / "simt_executor")
    flags = "-std=c++20 -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-strict-aliasing -Wall"
    sources = ["tests/simt_executor.cpp", *map(str, sorted((sanitized.ROOT / "csrc" / "simt").glob("*.cpp")))]
    command = [sanitized.compiler(), *flags.split(), "-DLLAMBA_SIMT", "-Icsrc", "-Icsrc/include", *sources]
    subprocess.run([*command, "-o", program], cwd=sanitized.ROOT, check=True)

    def run(name, seed=1):
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        result = subprocess.run([program, name, str(seed)], capture_output=True, text=True, env=environment)
        assert result.returncode == (1 if result.stderr else 0), result.stderr
        return result.stderr or result.stdout.strip()

    return run


def numbers(text):
    assert not text.startswith("error"), text
    return [float(word) for word in text.split()]


DEADLOCK = "every thread must get past its barriers; got a deadlock: "
NOTICED = {
    "barrier_of_some": DEADLOCK + "32 at barrier 0, 32 at finished$",
    "named_barrier_counts": f"barrier 1 must be for the same threads everywhere; got 64 and 32|{DEADLOCK}",
    "named_barrier_id": "a named barrier must be one of 0 to 15; got 16",
    "named_barrier_part_of_warp": "a barrier must be for whole warps; got 40 threads",
    "lanes_apart": "all lanes of a warp must meet at one instruction; got __s(yncwarp|hfl_sync) and __s",
    "lane_missing": DEADLOCK + "31 at __syncwarp, 1 at finished$",
    "part_of_mask": "a warp instruction's mask must name all lanes; got 0x0000ffff",
    "misaligned_load": "a load must be aligned; got 0x",
    "misaligned_store": "a store must be aligned; got 0x",
    "async_never_waited": "a thread must wait for its asynchronous copies before it ends; got one that does not",
    "async_uncommitted": "a thread must wait for its asynchronous copies before it ends; got one that does not",
    "async_misaligned": "cp.async must be aligned to its 16 bytes; got shared 0x",
    "async_outside_shared": "cp.async must stay inside the 384 bytes of shared memory; got offset 384 and 16 bytes",
    "bulk_too_few_bytes": "mbarrier must be told the bytes that its copies bring; got a difference of -16",
    "bulk_too_many_bytes": "mbarrier must be told the bytes that its copies bring; got a difference of 16",
    "bulk_never_announced": DEADLOCK + "64 at mbarrier.try_wait$",
    "bulk_too_many_arrivals": "mbarrier must get 1 arrivals a phase; got more",
    "bulk_misaligned": "cp.async.bulk must be aligned to 16 bytes; got 16 bytes, shared 0x",
    "bulk_outside_shared": "cp.async.bulk must stay inside the 384 bytes of shared memory; got offset 368 and 32 bytes",
    "arrive_without_init": "mbarrier.arrive must follow mbarrier.init; got a barrier without",
    "wait_without_init": "mbarrier.try_wait must follow mbarrier.init; got a barrier without",
    "bulk_without_init": "cp.async.bulk must follow mbarrier.init; got a barrier without",
    "threads_of_no_whole_warp": "a block must have 32 to 1024 threads, whole warps; got 48$",
    "too_many_threads": "a block must have 32 to 1024 threads, whole warps; got 1056$",
    "no_block": "a grid must have 1 to 2147483647 x 65535 x 65535 blocks; got 0 x 1 x 1$",
    "too_much_shared": "shared memory must be at most 227 KiB; got 232449 bytes$",
}


@pytest.mark.parametrize("name", NOTICED)
def test_what_the_device_leaves_undefined_ends_the_launch_with_a_sentence(executor, name):
    for seed in (1, 2):  # ascending and descending
        text = executor(name, seed)
        assert re.match(f"error: ({NOTICED[name]})", text), text
        assert (
            NOTICED[name].endswith("$")
            or "deadlock" in text
            or re.search(r" in thread \d+ of block \(0, 0, 0\)$", text)
        )


@pytest.mark.parametrize("name, access", [("shared_overrun", "WRITE"), ("shared_overrun_read", "READ")])
def test_a_shared_memory_overrun_is_address_sanitizers(executor, name, access):
    report = executor(name)
    assert (
        "ERROR: AddressSanitizer: " in report
        and f"{access} of size 4" in report
        and f"in (anonymous namespace)::{name}" in report
    )


# ---- copies land at their waits ----

nan = math.nan
VALUES = {
    "unwritten_shared": [nan],
    "async_waited": [4, 8],
    "async_zeros": [0, 8],
    "async_one_group_left": [4, nan],
    "async_read_before_wait": [nan, nan],
    "bulk_waited": [4, 11],
    "bulk_second_phase": [1, 5, 9],
    "bulk_read_before_wait": [nan, nan],
    "bulk_wrong_parity": [nan, nan],
}


@pytest.mark.parametrize("name", VALUES)
def test_values_are_there_after_their_wait_and_poison_before(executor, name):
    for seed in SEEDS:
        assert str(list(map(abs, numbers(executor(name, seed))))) == str(list(map(float, VALUES[name])))


# ---- schedules ----


def test_schedules_and_the_order_of_blocks_differ_and_follow_from_the_seed(executor):
    text = executor("order", 1)
    assert text == executor("order", 1) and text != executor("order", 2)
    threads = [divmod(int(number), 100) for number in numbers(text)]
    blocks = [threads[i][0] for i in range(0, len(threads), 96)]
    assert sorted(blocks) == list(range(40)) and blocks != list(range(40))
    orders = [[thread for _, thread in threads[i : i + 96]] for i in range(0, len(threads), 96)]
    for i, order in enumerate(orders):
        assert sorted(order) == list(range(96)) and {block for block, _ in threads[96 * i : 96 * i + 96]} == {blocks[i]}
    ascending, descending = list(range(96)), list(range(95, -1, -1))
    others = [order for order in orders if order not in (ascending, descending)]
    assert orders.count(ascending) > 5 and orders.count(descending) > 5 and len(others) > 5
    assert len(set(map(tuple, others))) == len(others)


def test_a_dropped_barrier_shows_in_most_schedules(executor):
    expected = list(map(float, range(64)))
    assert all(sorted(numbers(executor("barrier", seed))) == expected for seed in SEEDS)
    assert all(str(sorted(numbers(executor("dropped_barrier", seed)))) != str(expected) for seed in SEEDS)


def test_a_stage_that_is_copied_over_while_it_is_read_shows_in_some_schedules(executor):
    results = [numbers(executor("bulk_over_a_stage_that_is_read", seed))[0] for seed in SEEDS]
    assert any(map(math.isnan, results)) and 4.0 in results


# ---- warps ----


def test_shuffles_and_votes(executor):
    thirds = sum(1 << lane for lane in range(0, 32, 3))
    expected = [5, 12 ^ 9, 12 - 3, 12 + 3, thirds & 0xFFFF, thirds >> 16, 1, 0, 1, 0]  # as lane 12 sees them
    for seed in SEEDS:
        assert numbers(executor("shuffles", seed)) == expected
        assert numbers(executor("shuffle_round_after_round", seed)) == [31 * 16] * 64


def test_named_barriers_keep_pairs_of_warps_apart(executor):
    for seed in SEEDS:
        assert sorted(numbers(executor("named_barriers", seed))) == list(map(float, range(128)))


# ---- tensor cores ----


def test_mma_equals_a_plain_loop(executor):
    a = [[(7 * row + 3 * k) % 19 - 9 for k in range(16)] for row in range(16)]
    b = [[(5 * k + 11 * column) % 23 - 11 for column in range(8)] for k in range(16)]
    expected = [2 + sum(a[row][k] * b[k][column] for k in range(16)) for row in range(16) for column in range(8)]
    for seed in SEEDS:
        assert numbers(executor("mma_values", seed)) == expected


def test_mma_cuts_its_sums_off_as_the_hardware_does(executor):
    """1 + 1.5 * 2^-24 rounds up to 1 + 2^-23 and is cut off to 1; eight times 2^-26 are 2^-23, each cut off to 0."""
    assert numbers(executor("mma_cuts_off")) == [1.0] * 128
    assert numbers(executor("mma_cuts_off_each")) == [1.0] * 128
