"""The comparison of result files of several GPUs, from made-up files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

sys.path.append(str(Path(__file__).parents[1] / "bench"))
from compare import GPUS, PAPER, column, kernel_cells, nominal_bound, paper_bound, paper_cells, read, text
from gpu_cases import HEADLINE, NO_LIVE, STEADY, Case
from gpu_targets import TARGETS, verdicts
from traffic import Shape

pytestmark = pytest.mark.cpu_only


BENCH = Path(__file__).parents[1] / "bench"
CASE = Case(HEADLINE[0], 64, 4, "bfloat16", "float32")
OTHER = Case(Shape(16, 64, 128, 1), 2, 4, "bfloat16", "bfloat16")


def row(case, contender, us, mix=STEADY, bound=80.0):
    return {
        "shape": [case.shape.nheads, case.shape.headdim, case.shape.dstate, case.shape.ngroups],
        **{name: getattr(case, name) for name in ("batch", "ntokens", "activations", "checkpoint")},
        **{"mix": mix, "contender": contender, "us_min": us, "us_median": us, "nbytes": 3.4e8, "copy_gb_per_s": 4000.0},
        **{"bound_us": bound, "bound_by": "bytes", "error": None if us else "RuntimeError: it broke"},
    }


def file(folder, gpu, *rows):
    path = folder / f"{gpu.replace(' ', '_')}.json"
    machine = {"gpu": gpu}
    path.write_text(json.dumps({"schema": 1, "machine": machine, "rows": rows}))
    return path


@pytest.fixture
def measured(tmp_path):
    h200 = [row(CASE, "recurrent", 140.0), row(CASE, "matmul", 100.25, bound=80.5), row(OTHER, "recurrent", None)]
    rivals = [row(CASE, "snapshot", 1.0, mix="any")]
    return read([file(tmp_path, "NVIDIA H200", *h200, *rivals), file(tmp_path, "NVIDIA GeForce RTX 3090")])


def test_a_cell_is_our_fastest_a_failure_or_not_measured(measured):
    assert kernel_cells(measured, "H200", CASE, STEADY) == ["100.25 matmul", "80.50"]
    assert kernel_cells(measured, "H200", OTHER, STEADY) == ["FAILED", f">= {nominal(OTHER, 'H200')}"]
    assert kernel_cells(measured, "H200", CASE, NO_LIVE) == ["not measured", f">= {nominal(CASE, 'H200', NO_LIVE)}"]
    assert kernel_cells(measured, "3090", CASE, STEADY) == ["not measured", f">= {nominal(CASE, '3090')}"]


def nominal(case, gpu, mix=STEADY):
    return f"{nominal_bound(GPUS[gpu], case, mix):.2f}"


def test_nominal_bound_counted_by_hand():
    """64 states of 4 MiB, no live rows: each read once; 4 new tokens in, stored, and out; the tail's 3 rows."""
    row_bytes = 2 * (128 * 64 + 2 * 8 * 128 + 128)
    nbytes = 64 * (4 * 128 * 64 * 128 + (4 + 7) * row_bytes + 4 * 2 * 128 * 64)
    parameters = 5 * 2 * (128 * 64 + 2 * 8 * 128) + 3 * 4 * 128
    assert nominal_bound(GPUS["H200"], CASE, NO_LIVE) == pytest.approx((nbytes + parameters) / 4800e3)
    assert nominal_bound(GPUS["3090"], CASE, NO_LIVE) == pytest.approx((nbytes + parameters) / 936e3)
    steady = 64 * (3 / 16 * 4 * 128 * 64 * 128 + 10.5 * row_bytes)  # W 16: of 16 steps 3 fold; 3 to 18 rows are live
    assert nominal_bound(GPUS["H200"], CASE, STEADY) == pytest.approx((nbytes + steady + parameters) / 4800e3)


def test_the_table_has_every_gpu_and_the_papers_numbers(measured):
    table = "\n".join(text(measured))
    first = table.splitlines()[0]
    assert [name for name in re.split(r"\s{2,}", first)[1:] if name != "bound"] == ["3090", "A100", "H100", "H200"]
    assert f"{OTHER}, {STEADY}" in table and "100.25 matmul" in table
    papers = [re.split(r"\s{2,}", line) for line in table.splitlines() if line.startswith("Mamba 7B, 4 drafts")]
    assert papers == [
        [
            *("Mamba 7B, 4 drafts per step", "110 (2.1x)", "<= 334", "not measured", "<= 728"),
            *("272 (2.0x)", "<= 1196", "not measured", "<= 1714"),
        ]
    ]


def test_the_papers_numbers_are_below_their_bounds():
    for model, known in PAPER.items():
        assert known.keys() == {"3090", "H100"}
        assert all(speed < paper_bound(gpu, *model) for gpu, (speed, _) in known.items())
    assert paper_bound("H100", 7.0, 3) == pytest.approx(4 * 3350e9 / 14e9)
    assert paper_cells("L4", (7.0, 3)) == ["not measured", "-"]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GH200 480GB", "NVIDIA GH200 480GB"),  # not an H200
        ("NVIDIA L4", "NVIDIA L4"),
    ],
)
def test_columns_by_name(name, expected):
    assert column({"machine": {"gpu": name}}) == expected


def test_another_gpu_has_a_column_without_nominal_bounds(tmp_path):
    measured = read([file(tmp_path, "NVIDIA L4", row(CASE, "matmul", 700.0, bound=600.0))])
    assert kernel_cells(measured, "NVIDIA L4", CASE, STEADY) == ["700.00 matmul", "600.00"]
    assert kernel_cells(measured, "NVIDIA L4", OTHER, STEADY) == ["not measured", "-"]
    assert "NVIDIA L4" in next(text(measured))


def test_two_files_of_one_gpu_are_refused(tmp_path):
    files = [file(tmp_path, "NVIDIA H100 80GB HBM3"), file(tmp_path, "NVIDIA H100 PCIe")]
    with pytest.raises(ValueError, match="every GPU must have one file; got a second one of the H100"):
        read(files)


def test_command_writes_the_table_and_the_figure(tmp_path):
    source = file(tmp_path, "NVIDIA H200", row(CASE, "matmul", 100.25))
    table, figure = tmp_path / "compare.txt", tmp_path / "compare.png"
    command = [sys.executable, BENCH / "compare.py", source, "--text", table, "--figure", figure]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == table.read_text() and "100.25 matmul" in run.stdout
    assert matplotlib.image.imread(figure).std() > 0
    wrong = subprocess.run([*command[:2], tmp_path / "no.json"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "no.json" in wrong.stderr.splitlines()[-1]


def test_targets_are_reached_missed_or_not_measured():
    """340 MB in 100 us are 3400 of 4000 GB/s."""
    rows = [row(CASE, "matmul", 100.0), row(CASE, "recurrent", 90.0), row(CASE, "snapshot", 170.0, mix="any")]
    found = list(verdicts({"rows": rows}))
    done = {each[0]: each[2:] for each in found if each[-1] != "not measured"}
    assert done == {
        TARGETS[0].sentence: ["matmul", "0.85", "reached"],
        TARGETS[4].sentence: ["recurrent", "1.05", "reached"],
        TARGETS[5].sentence: ["recurrent", "1.89", "MISSED"],
    }
    assert {each[0] for each in found} == {target.sentence for target in TARGETS}
