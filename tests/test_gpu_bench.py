"""The GPU benchmark's arithmetic, its steps, and a dry run of all of it on the CPU."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llamba_kernels.cache import Session
from llamba_kernels.ops import mamba1_verify, mamba2_verify

sys.path.append(str(Path(__file__).parents[1] / "bench"))
import bench_mamba1_verify_gpu as mamba1_bench
import bench_mamba2_verify_gpu as bench
import gpu_ours
from gpu_cases import DTYPES, NO_LIVE, SHAPES, STEADY, Case, core_cases, full_cases, phases, ring_phases
from gpu_check import require_close
from gpu_harness import machine, rotation
from gpu_results import Results, aligned, find, key, lines, load, ratios
from traffic import Mamba1Shape, Shape, bound_us, launch_work, mamba1_launch_work, step_work

H80 = Shape(80, 64, 128, 1)
TINY = Case(Shape(4, 16, 32, 2), 5, 4, "bfloat16", "float32")


def test_bytes_of_a_step_counted_by_hand():
    work = step_work(H80, ntokens=4, live=4, fold=0, activations="bfloat16", checkpoint="float32")
    row = 2 * (80 * 64 + 2 * 128 + 80)  # xBC and dt of a token
    assert work.nbytes == 4 * 80 * 64 * 128 + 4 * (row + 2 * 80 * 64) + (3 + 4 + 4) * row == 2_826_080
    folding = step_work(H80, ntokens=4, live=4, fold=4, activations="bfloat16", checkpoint="float32")
    assert folding.nbytes - work.nbytes == 4 * 80 * 64 * 128
    half = step_work(H80, ntokens=4, live=4, fold=0, activations="bfloat16", checkpoint="bfloat16")
    assert work.nbytes - half.nbytes == 2 * 80 * 64 * 128


def test_operations_of_a_step_counted_by_hand():
    work = step_work(H80, ntokens=4, live=4, fold=0, activations="bfloat16", checkpoint="bfloat16")
    state = 80 * 64 * 128
    assert work.slots == state * (2 * 4 + 3 * 4)
    seen = 4 * 4 + (1 + 2 + 3 + 4)  # live rows and new tokens that the new tokens attend to
    assert work.flops == 2 * 4 * state + 2 * seen * (128 + 80 * 64)
    split = step_work(H80, ntokens=4, live=4, fold=3, activations="bfloat16", checkpoint="float32")
    assert split.flops - work.flops == 2 * state * (2 * 4 + 3)


def test_work_of_a_launch_is_the_mean_of_its_phases_and_the_parameters():
    steps = [step_work(H80, 4, live, fold, "bfloat16", "bfloat16") for live, fold in ((3, 0), (6, 4))]
    launch = launch_work(H80, 10, 4, [(3, 0), (6, 4)], "bfloat16", "bfloat16")
    parameters = 5 * 2 * H80.conv_dim + 3 * 4 * 80
    assert launch.nbytes == 5 * (steps[0].nbytes + steps[1].nbytes) + parameters
    assert launch.slots == 5 * (steps[0].slots + steps[1].slots)


def test_bound_is_the_larger_of_bytes_and_operations():
    work = replace(step_work(H80, 4, 0, 0, "bfloat16", "float32"), nbytes=4e6, slots=128 * 132 * 2000, flops=1)
    assert bound_us(work, "matmul", 4000, "9.0", 132, 2000) == (1.0, "bytes")
    assert bound_us(work, "recurrent", 8000, "9.0", 132, 2000) == (1.0, "operations")
    assert bound_us(work, "recurrent", 4000, "7.0", 132, 2000) == (1.0, "bytes")  # rates not known
    assert bound_us(work, "recurrent", 4000, "8.0", 132, 2000) == (2.0, "operations")  # half as many lanes


@pytest.mark.parametrize("mix", [STEADY, NO_LIVE])
@pytest.mark.parametrize("fold_every", [1, 2, 3, 4, 8, 16])
def test_phases_are_those_of_the_cursor(fold_every, mix):
    for ntokens, accepted in ((1, 1), (2, 2), (4, 3), (16, 3)):
        session = Session(max_window=ntokens, fold_every=fold_every)
        steps = gpu_ours.open_steps(session, ntokens, accepted, mix)
        assert [tuple(step) for step in steps[:, 1:3].tolist()] == phases(mix, fold_every, accepted)
        assert (steps[:, 0] > steps[:, 1]).all()  # no fresh slots: these would not read the checkpoint
        assert (steps[:, 3] == ntokens).all()


def test_phases_of_a_ring():
    assert ring_phases(STEADY, 16, 4, 3) == [3, 6, 9, 12, 15]  # 15 + 4 > 16: that step writes, 3 are live after it
    assert ring_phases(STEADY, 16, 16, 3) == [3]
    assert ring_phases(NO_LIVE, 16, 4, 3) == [0]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rotation_has_every_phase_equally_often_and_every_copy(device):
    for nphases in (1, 4, 5, 16):
        for ncopies in (2, 7, 50):
            pairs = rotation(nphases, ncopies, device)
            counts = {phase: [pair[0] for pair in pairs].count(phase) for phase in range(nphases)}
            assert len(set(counts.values())) == 1
            assert {copy for _, copy in pairs} == set(range(ncopies))
            assert all(a[1] != b[1] for a, b in zip(pairs, pairs[1:], strict=False))


def test_core_rows_are_part_of_the_full_grid_and_have_their_one_token_rows():
    core = core_cases()
    assert set(core) <= set(full_cases()) and len(set(core)) == len(core)
    assert {case.shape for case in core} == set(SHAPES)
    assert {replace(case, ntokens=1) for case in core} <= set(core)


@pytest.fixture(scope="module")
def cpu():
    return machine("cpu", "a commit")


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("batch, ntokens", [(1, 1), (1, 4), (9, 2)])
def test_our_rows_on_the_cpu(cpu, batch, ntokens, dtypes):
    case = Case(TINY.shape, batch, ntokens, *dtypes)
    for contender in ("recurrent", "matmul"):
        rows = bench.measure(contender, case, "cpu", cpu)
        assert [row["mix"] for row in rows] == [STEADY, NO_LIVE]
        for row in rows:
            assert row["error"] is None and 0 < row["us_min"] <= row["us_median"]
            assert 0 < row["error_ratios"]["y"] <= 1 and 0 <= row["error_ratios"]["checkpoint"] <= 1
            assert row["bound_us"] == row["nbytes"] / cpu["copy_gb_per_s"] / 1e3 and row["bound_by"] == "bytes"
        assert rows[0]["nbytes"] > rows[1]["nbytes"]


@pytest.mark.device_only
@pytest.mark.parametrize("algorithm", ["recurrent", "matmul"])
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("shape, batch, ntokens", [(Shape(2, 64, 128, 1), 1, 8), (Shape(2, 80, 128, 2), 20, 4)])
def test_the_kernels_pass_the_check_before_the_clock(shape, batch, ntokens, dtypes, algorithm):
    ours = gpu_ours.Ours(Case(shape, batch, ntokens, *dtypes), "cpu", algorithm)
    ours.options["algorithm"] = algorithm
    for mix in (STEADY, NO_LIVE):
        require_close("ours", ours.prepare(mix).check())


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_every_sequence_goes_through_the_whole_cycle_and_neighbours_are_apart(batch):
    prepared = gpu_ours.Ours(replace(TINY, batch=batch), "cpu", "recurrent", fold_every=8).prepare(STEADY)
    tables = [launch.args[1] for launch in prepared.launches]
    cycle = phases(STEADY, 8, 3)
    for b in range(batch):
        assert sorted(tuple(table[b, 1:3].tolist()) for table in tables) == sorted(cycle)
    assert [tuple(step) for step in tables[0][:, 1:3].tolist()] == [cycle[b % 8] for b in range(batch)]


def y_off_by_one_row(*arguments, out, **options):
    return mamba2_verify(*arguments, out=out, **options).copy_(out.roll(1, dims=1))


def checkpoint_not_stored(*arguments, out, **options):
    kept = arguments[7].clone()
    mamba2_verify(*arguments, out=out, **options)
    arguments[7].copy_(kept)


def y_not_written(*arguments, out, **options):
    mamba2_verify(*arguments, out=None, **options)


@pytest.mark.parametrize("fault", [y_off_by_one_row, checkpoint_not_stored, y_not_written])
@pytest.mark.parametrize("batch", [1, 9])
def test_a_wrong_operator_is_not_timed(cpu, monkeypatch, fault, batch):
    monkeypatch.setattr(gpu_ours, "mamba2_verify", fault)
    rows = bench.measure("recurrent", replace(TINY, batch=batch), "cpu", cpu)
    assert rows[0]["error"].startswith("AssertionError: ") and rows[0]["us_median"] is None
    assert "recurrent must be within tolerance of the reference; beyond it: " in rows[0]["error"]
    assert max(2 if ratio is None else ratio for ratio in rows[0]["error_ratios"].values()) > 1


def test_what_does_not_fit_is_skipped_and_says_so(cpu, monkeypatch):
    def refuse(*_):
        raise MemoryError("needs 600 GiB of memory; 139 GiB are free")

    monkeypatch.setattr(gpu_ours, "copies_for", refuse)
    rows = bench.measure("recurrent", TINY, "cpu", cpu)
    assert {row["error"] for row in rows} == {"skipped: needs 600 GiB of memory; 139 GiB are free"}


MAMBA1 = Mamba1Shape(48, 16, 3, 6)


def test_bytes_of_a_mamba1_launch_counted_by_hand():
    work = mamba1_launch_work(MAMBA1, 10, 4, [(1, 0), (3, 2)], "bfloat16", "float32")
    row, token = 2 * (2 * 48 + 3 * 16), 2 * (4 * 48 + (3 + 6) * 16)  # x, dt, B; those, C, z and out
    state, parameters = 4 * 48 * 16, 4 * (48 * 16 + 2 * 48)
    assert work.nbytes == 5 * (state + 4 * token + 5 * row + 2 * state + 4 * token + 7 * row) + parameters
    assert work.slots == 5 * 48 * 16 * (4 * (1 + 3) + 5 * (4 + 4))


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("batch, ntokens", [(1, 1), (5, 4)])
def test_mamba1_rows_on_the_cpu(cpu, batch, ntokens, dtypes):
    rows = mamba1_bench.measure("recurrent", Case(MAMBA1, batch, ntokens, *dtypes), "cpu", cpu)
    assert [row["mix"] for row in rows] == [STEADY, NO_LIVE]
    for row in rows:
        assert row["error"] is None and 0 < row["us_min"] <= row["us_median"]
        assert 0 < row["error_ratios"]["y"] <= 1 and row["bound_by"] == "bytes"
    text = list(lines({"machine": cpu, "rows": rows}))
    assert text[3].startswith("mamba1_verify, d48 n16 B3 C6, ")


def test_a_wrong_mamba1_operator_is_not_timed(cpu, monkeypatch):
    def off_by_one_row(*arguments, out, **options):
        return mamba1_verify(*arguments, out=out, **options).copy_(out.roll(1, dims=1))

    monkeypatch.setattr("llamba_kernels.testing_mamba1.mamba1_verify", off_by_one_row)
    rows = mamba1_bench.measure("recurrent", Case(MAMBA1, 3, 4, *DTYPES[0]), "cpu", cpu)
    assert all(row["error"].startswith("AssertionError: recurrent must be") for row in rows)


def made_up(contender, us, mix=STEADY, ntokens=4, error=None):
    return {
        **{"shape": [4, 16, 32, 2], "batch": 5, "ntokens": ntokens, "activations": "bfloat16"},
        **{"checkpoint": "float32", "mix": mix, "contender": contender, "us_min": us, "us_median": us},
        **{"nbytes": 1e6, "bound_us": 5.0, "bound_by": "bytes", "fold_every": 4, "error": error},
        "copy_gb_per_s": 200.0,
    }


def test_ratios_and_the_table(tmp_path):
    results = Results(tmp_path / "new" / "rows.json", {"gpu": "some GPU"})
    results.add(made_up("recurrent", 99.0))
    for row in (
        made_up("recurrent", 10.0),  # replaces the first
        made_up("recurrent", 5.0, ntokens=1),
        made_up("snapshot", 30.0, mix="any"),
        made_up("flashinfer ring", None, error="TypeError: a long sentence about what it did not like"),
        made_up("flashinfer ring", 15.0, mix=NO_LIVE),
    ):
        results.add(row)
    data = load(results.path)
    assert len(data["rows"]) == 5 and results.has(made_up("recurrent", 1.0)) and not results.has(made_up("matmul", 1.0))
    rows = {key(row): row for row in data["rows"]}
    ours = find(rows, made_up("recurrent", 0.0))
    assert ratios(rows, ours) == [2.0, None, None, None, 3.0]
    text = [line.split() for line in lines(data)]
    assert "5 4 recurrent 4 10.00 10.00 100 50 5.00 bytes 2.00 - - - 3.00".split() in text
    assert "5 4 flashinfer ring FAILED: TypeError: a long sentence about what it did not like".split() in text
    command = [sys.executable, Path(bench.__file__).with_name("gpu_results.py"), results.path]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stdout.splitlines() == list(lines(data)) and (run.returncode, run.stderr) == (1, "1 rows FAILED\n")


def test_another_schema_is_refused(tmp_path):
    (tmp_path / "rows.json").write_text('{"schema": 2}')
    with pytest.raises(ValueError, match="schema must be 1; got 2"):
        load(tmp_path / "rows.json")


def test_columns_align():
    assert list(aligned([["a", "bb"], ["ccc", "d"]])) == ["a    bb", "ccc   d"]
