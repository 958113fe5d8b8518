"""The figure of compare.py: measured microseconds and bounds per GPU, and the paper's Table 1."""

import matplotlib

matplotlib.use("Agg")  # writes files; needs no display

import matplotlib.pyplot as plt
from compare import GPUS, PAPER, nominal_bound, paper_bound, result
from gpu_cases import HEADLINE, STEADY, core_cases

COLOURS = dict(zip(GPUS, ("tab:blue", "tab:green", "tab:orange", "tab:red"), strict=True))


def draw(measured, path):
    figure, axes = plt.subplots(
        1, len(HEADLINE) + 1, figsize=(19, 7), width_ratios=[3] * len(HEADLINE) + [2], layout="constrained"
    )
    for shape, axis in zip(HEADLINE, axes, strict=False):
        kernels(axis, measured, shape)
    paper(axes[-1])
    absent = ", ".join(gpu for gpu in GPUS if gpu not in measured) or "none"
    figure.suptitle(f"Hollow: roofline bound. Filled: measured. Not measured: {absent}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def kernels(axis, measured, shape):
    """A point per case of one shape: filled where it was measured, hollow its bound."""
    cases = [case for case in core_cases() if case.shape == shape and case.activations == "bfloat16"]
    for offset, (gpu, colour) in enumerate(COLOURS.items()):
        best = [result(measured.get(gpu, {}).get((case, STEADY), [])) for case in cases]
        bounds = [
            each[1] if each else nominal_bound(GPUS[gpu], case, STEADY) for each, case in zip(best, cases, strict=True)
        ]
        places = [place + 0.15 * offset for place in range(len(cases))]
        axis.plot(places, bounds, "o", mfc="none", color=colour, label=f"{gpu} bound")
        done = [(place, each[0]) for place, each in zip(places, best, strict=True) if each]
        if done:
            axis.plot(*zip(*done, strict=True), "o", color=colour, label=f"{gpu} measured")
    axis.set_xticks(range(len(cases)), [case.id.split("-", 4)[-1] for case in cases], rotation=90)
    axis.set(yscale="log", ylabel="us per layer", title=f"mamba2_verify, {shape}, steady mix")
    axis.legend(fontsize="small")


def paper(axis):
    """Table 1's tokens per second where it has them, bounds everywhere."""
    for offset, (gpu, colour) in enumerate(COLOURS.items()):
        places = [place + 0.2 * offset for place in range(len(PAPER))]
        axis.plot(places, [paper_bound(gpu, *model) for model in PAPER], "o", mfc="none", color=colour)
        known = [(place, row[gpu][0]) for place, row in zip(places, PAPER.values(), strict=True) if gpu in row]
        if known:
            axis.bar(*zip(*known, strict=True), width=0.18, color=colour, label=f"{gpu}, the paper")
    axis.set_xticks(range(len(PAPER)), [f"{size:g}B k{drafts}" for size, drafts in PAPER], rotation=90)
    axis.set(yscale="log", ylabel="tokens/s at batch 1", title="The paper's Table 1 (Mamba-1)")
    axis.legend(fontsize="small")
