"""What quickstart shows at its end: a table for the terminal and a PNG."""

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table


@dataclass
class ModelRow:
    """One line of the table; None: not measured for this model."""

    name: str
    perplexity: float
    bits_per_byte: float
    plain_tokens_per_second: float | None = None
    speculative_tokens_per_second: float | None = None
    acceptance_length: float | None = None
    identical: bool | None = None


def results_table(rows: list[ModelRow], window: int | None = None) -> Table:
    """Held-out quality, the first row being what the others are compared with, and with a window decoding speed."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("model")
    headings = ["perplexity", f"x\n{rows[0].name}", "bits\nper byte"]
    if window is not None:
        headings += ["plain\ntok/s", f"window {window}\ntok/s", "tokens\nper step", "same\ntokens"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [f"{row.perplexity:.3f}", f"{row.perplexity / rows[0].perplexity:.3f}", f"{row.bits_per_byte:.4f}"]
        if window is not None:
            cells += [
                _number(row.plain_tokens_per_second, ".1f"),
                _number(row.speculative_tokens_per_second, ".1f"),
                _number(row.acceptance_length, ".2f"),
                "" if row.identical is None else "yes" if row.identical else "NO",
            ]
        table.add_row(row.name, *cells)
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def results_plot(
    path: Path, losses: dict[str, list[tuple[int, float]]], step_shares: dict[str, dict[str, float]]
) -> None:
    """Write a PNG: the loss of each training stage over tokens, and where the time of a decoding step goes.

    Args:
        losses: stage -> [(tokens so far, loss)].
        step_shares: model -> {part of a step: milliseconds}.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, len(losses) + 1, figsize=(4.2 * (len(losses) + 1), 3.8), layout="constrained")
    for axis, (stage, points) in zip(axes, losses.items(), strict=False):
        axis.plot(*zip(*points, strict=True), linewidth=1.2)
        axis.set(title=f"{stage}: loss", xlabel="tokens", yscale="log")
        axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axis.grid(alpha=0.3)
    parts = list(next(iter(step_shares.values())))
    for i, shares in enumerate(step_shares.values()):
        bottom = 0.0
        for part, colour in zip(parts, pyplot.cm.tab10.colors, strict=False):
            axes[-1].bar(i, shares[part], bottom=bottom, color=colour, width=0.6, label=part if i == 0 else None)
            bottom += shares[part]
    axes[-1].set_xticks(range(len(step_shares)), step_shares)
    axes[-1].set(title="where the time of a step goes", ylabel="ms per step")
    handles, labels = axes[-1].get_legend_handles_labels()
    axes[-1].legend(handles[::-1], labels[::-1], fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
