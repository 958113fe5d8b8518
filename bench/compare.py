"""Result files of several GPUs side by side, beside the paper's Table 1: a text table and a figure.

`python bench/compare.py [FILE...] [--text FILE] [--figure FILE]`, a FILE being bench/results/<gpu>/mamba2_verify.json.
Every row has its roofline bound: of a measured GPU from the copy bandwidth of its own run, of another from its nominal
bandwidth and clock, which nothing reaches. A GPU without a file is "not measured".
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from gpu_cases import FOLD_EVERY, HEADLINE, STEADY, Case, core_cases, phases
from gpu_results import OURS, aligned, load
from traffic import Shape, bound_us, launch_work


@dataclass(frozen=True)
class Gpu:
    """Nominal figures of the vendor's data sheet: 1e9 bytes per second, multiprocessors, highest clock."""

    gb_per_s: float
    capability: str
    sms: int
    clock_mhz: int


GPUS = {
    "3090": Gpu(936, "8.6", 82, 1695),
    "A100": Gpu(2039, "8.0", 108, 1410),  # SXM, 80 GB
    "H100": Gpu(3350, "9.0", 132, 1980),  # SXM
    "H200": Gpu(4800, "9.0", 132, 1980),
}

# Table 1 of "The Mamba in the Llama" (arXiv 2408.15237): speculative decoding of pure Mamba-1 models at batch 1.
# (parameters in 1e9, drafts per step): {GPU: (tokens per second, times plain decoding)}
PAPER = {
    (2.8, 3): {"3090": (259, 2.3), "H100": (389, 1.71)},
    (2.8, 4): {"3090": (289, 2.6), "H100": (421, 1.85)},
    (7.0, 3): {"3090": (109, 2.1), "H100": (271, 1.95)},
    (7.0, 4): {"3090": (110, 2.1), "H100": (272, 2.0)},
}


def column(data):
    """Which column of GPUS a results file belongs to; the GPU's own name if none."""
    name = data["machine"]["gpu"]
    return next((gpu for gpu in GPUS if re.search(rf"\b{gpu}\b", name)), name)


def read(paths):
    """{column: {(case, mix): our rows}}."""
    measured = {}
    for path in paths:
        data = load(path)
        gpu = column(data)
        if gpu in measured:
            raise ValueError(f"{path}: every GPU must have one file; got a second one of the {gpu}")
        rows = measured[gpu] = {}
        for row in data["rows"]:
            if row["contender"] in OURS:
                case = Case(Shape(*row["shape"]), *(row[k] for k in ("batch", "ntokens", "activations", "checkpoint")))
                rows.setdefault((case, row["mix"]), []).append(row)
    return measured


def nominal_bound(gpu, case, mix):
    """Microseconds that no algorithm of ours can beat on a GPU of the data sheet."""
    bounds = []
    for algorithm, fold_every in FOLD_EVERY.items():
        steps = phases(mix, fold_every, case.accepted)
        work = launch_work(case.shape, case.batch, case.ntokens, steps, case.activations, case.checkpoint)
        bounds.append(bound_us(work, algorithm, gpu.gb_per_s, gpu.capability, gpu.sms, gpu.clock_mhz)[0])
    return min(bounds)


def result(rows):
    """(microseconds, bound, algorithm) of the fastest of our rows; None if all failed."""
    done = [row for row in rows if row["us_median"] is not None]
    best = min(done, key=lambda row: row["us_median"], default=None)
    return best and (best["us_median"], best["bound_us"], best["contender"])


def kernel_cells(measured, gpu, case, mix):
    rows = measured.get(gpu, {}).get((case, mix))
    best = rows and result(rows)
    if best:
        return [f"{best[0]:.2f} {best[2]}", f"{best[1]:.2f}"]
    return [
        "FAILED" if rows else "not measured",
        f">= {nominal_bound(GPUS[gpu], case, mix):.2f}" if gpu in GPUS else "-",
    ]


def paper_bound(gpu, billions, drafts):
    """Tokens per second when every draft is accepted, a step only reads the weights (16 bits), and drafting is free."""
    return (drafts + 1) * GPUS[gpu].gb_per_s / (2 * billions)


def paper_cells(gpu, model):
    if gpu not in GPUS:
        return ["not measured", "-"]
    found = PAPER[model].get(gpu)
    return [f"{found[0]} ({found[1]}x)" if found else "not measured", f"<= {paper_bound(gpu, *model):.0f}"]


def cases(measured):
    """The rows: those of the headline shapes in the steady mix, and whatever else was measured."""
    keys = [(case, STEADY) for case in core_cases() if case.shape in HEADLINE]
    return list(dict.fromkeys(keys + [key for rows in measured.values() for key in rows]))


def text(measured):
    gpus = [*GPUS, *(gpu for gpu in measured if gpu not in GPUS)]
    head = [name for gpu in gpus for name in (gpu, "bound")]
    kernels = [["mamba2_verify, the fastest of our algorithms, us", *head]]
    for case, mix in cases(measured):
        kernels.append([f"{case}, {mix}", *(cell for gpu in gpus for cell in kernel_cells(measured, gpu, case, mix))])
    paper = [["the paper's Table 1, whole models at batch 1, tokens/s", *head]]
    for model in PAPER:
        cells = (cell for gpu in gpus for cell in paper_cells(gpu, model))
        paper.append([f"Mamba {model[0]:g}B, {model[1]} drafts per step", *cells])
    yield from aligned(kernels)
    yield "bound: at the copy bandwidth and clock of the GPU's own run; >=: at nominal ones, for a GPU not measured"
    yield ""
    yield from aligned(paper)
    yield "<=: at nominal bandwidth, every draft accepted, the 16-bit weights read once per step, drafting free"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="result files, one per GPU")
    parser.add_argument("--text", type=Path, help="file that takes the table, too")
    parser.add_argument("--figure", type=Path, default=Path("compare.png"), help="default: compare.png")
    options = parser.parse_args()
    try:
        measured = read(options.files)
    except (OSError, ValueError) as problem:
        parser.error(str(problem))
    except (AttributeError, KeyError, TypeError):
        parser.error(f"files must be results of bench_mamba2_verify_gpu.py; got {', '.join(options.files)}")
    table = "\n".join(text(measured)) + "\n"
    print(table, end="")
    if options.text:
        options.text.write_text(table)
    from compare_figure import draw  # matplotlib takes a second to import

    draw(measured, options.figure)
    print(f"figure: {options.figure}", file=sys.stderr)


if __name__ == "__main__":
    main()
