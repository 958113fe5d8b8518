"""What quickstart shows at its end: a table for the terminal and a PNG."""

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table


@dataclass
class ModelRow:
    """One line of the table; None: not measured for this model, or without a seed."""

    name: str
    seed: int | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    other_perplexity: float | None = None  # on a domain not trained on
    other_bits_per_byte: float | None = None
    same_next_token: float | None = None  # share, see agreement.same_next_token
    common_prefix: float | None = None  # tokens, see agreement.common_prefix
    plain_tokens_per_second: float | None = None
    speculative_tokens_per_second: float | None = None
    acceptance_length: float | None = None
    identical: bool | None = None

    @property
    def label(self) -> str:
        return self.name if self.seed is None else f"{self.name} seed {self.seed}"

    def add(self, scores: dict[str, float]) -> None:
        for name, value in scores.items():
            setattr(self, name, value)

    def add_speeds(self, plain: dict, speculative: dict) -> None:
        """From two rows of `decode_bench`."""
        self.plain_tokens_per_second = plain["tokens_per_second"]
        self.speculative_tokens_per_second = speculative["tokens_per_second"]
        self.acceptance_length = speculative["acceptance_length"]
        self.identical = speculative["identical"]


def scores_table(rows: list[ModelRow]) -> Table:
    """Held-out quality, the first row being what the others are compared with."""
    table = _table("perplexity", f"x\n{rows[0].name}", "bits\nper byte")
    for row in rows:
        table.add_row(row.label, f"{row.perplexity:.3f}", _ratio(row, rows[0]), f"{row.bits_per_byte:.4f}")
    return table


def results_table(rows: list[ModelRow], window: int) -> Table:
    """What quickstart measured: quality on two texts, the first row being the teacher, agreement, decoding speed."""
    table = _table(
        *("perplexity", "x\nteacher", "other\ntext", "x\nteacher", "same\nnext\ntoken"),
        *("plain\ntok/s", f"window {window}\ntok/s", "tokens\n/ step", "same\ntokens"),
    )
    for row in rows:
        table.add_row(
            row.label,
            f"{row.perplexity:.3f}",
            _ratio(row, rows[0]),
            f"{row.other_perplexity:.3f}",
            _ratio(row, rows[0], "other_perplexity"),
            f"{100 * row.same_next_token:.1f}%",
            _number(row.plain_tokens_per_second, ".1f"),
            _number(row.speculative_tokens_per_second, ".1f"),
            _number(row.acceptance_length, ".2f"),
            "" if row.identical is None else "yes" if row.identical else "NO",
        )
    return table


def notes(rows: list[ModelRow], prompts: int, new_tokens: int) -> str:
    """What the columns mean, and the other measure of agreement."""
    prefixes = "; ".join(f"{row.label} {row.common_prefix:.1f}" for row in rows[1:] if row.common_prefix is not None)
    return (
        "x teacher: times the teacher's perplexity. other text: a domain not trained on. "
        "deleted: the teacher without the converted layers. "
        "tuned: the teacher, trained on the same tokens in as many steps.\n"
        f"same next token: the share of the teacher's own greedy text ({prompts} held-out prompts x {new_tokens} "
        "tokens) that is the model's choice there, too.\n"
        f"By itself, each writes the teacher's own tokens for so many of the first {new_tokens}: {prefixes}.\n"
        "same tokens: speculative output equals plain output, token for token."
    )


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("model")  # a long path wraps, numbers never do
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _ratio(row: ModelRow, base: ModelRow, field: str = "perplexity") -> str:
    return f"{getattr(row, field) / getattr(base, field):.3f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def results_plot(
    path: Path, losses: dict[str, dict[str, list[tuple[int, float]]]], step_shares: dict[str, dict[str, float]]
) -> None:
    """Write a PNG: the loss of each training stage over tokens, and where the time of a decoding step goes.

    Args:
        losses: stage -> seed -> [(tokens so far, loss)].
        step_shares: model -> {part of a step: milliseconds}.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, len(losses) + 1, figsize=(4.2 * (len(losses) + 1), 3.8), layout="constrained")
    for axis, (stage, runs) in zip(axes, losses.items(), strict=False):
        for label, points in runs.items():
            axis.plot(*zip(*points, strict=True), linewidth=1.2, label=label)
        axis.legend(fontsize=8)
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
