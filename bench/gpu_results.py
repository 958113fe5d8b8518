"""Result files of the GPU benchmark: their schema, and their text table (`python bench/gpu_results.py FILE...`, which
fails if a row did).

A file is one JSON object; bench/results/<gpu>/mamba2_verify.json is one. Times are microseconds per launch.

    schema    1
    machine   gpu (name), compute_capability, sms, clock_mhz (highest SM clock), l2_mib, memory_gib, driver, cuda,
              torch, commit, clocks_sm_mem_maxmem (as nvidia-smi prints them), peers ({package: version}),
              copy_gb_per_s: 1e9 bytes read and written per second by copying a large tensor
    rows      one per case, mix and contender:
      op            "mamba1_verify"; a row without it is one of mamba2_verify
      shape         [nheads, headdim, dstate, ngroups]; mamba1_verify: [d_inner, dstate, B_heads, C_heads]
      batch, ntokens (tokens of the window), activations, checkpoint (dtypes)
      mix           "steady": every step keeps 3 tokens (1, 2 of a window of 1, 2), live rows and folds as they then
                    are; "no live rows"; "any": this contender's step is always the same
      contender     "recurrent", "matmul": ours; or a name in gpu_peers.PEERS
      us_min, us_median   over replays of a CUDA graph of 48 launches or of 5 ms, arguments cold; null if error is set
      nbytes        what a launch must move at least (traffic.py); null for peers, whose schemes move other amounts
      bound_us, bound_by  no faster is possible at copy_gb_per_s ("bytes") or at the highest clock ("operations")
      copy_gb_per_s  the machine's, as measured in the process that measured this row
      fold_every    W of the session, or the window of the peer's ring, or null
      error_ratios  {what was checked before the clock: its error over what is allowed}; null: not a number
      error         null, "skipped: why", or what failed: such a row has no times
"""

import json
import sys
from pathlib import Path

KEY = ("shape", "activations", "checkpoint", "mix", "batch", "ntokens", "contender")
OURS = ("recurrent", "matmul")
RIVALS = ("flashinfer ring", "flashinfer mtp", "mamba_ssm", "snapshot")
LETTERS = {"mamba2_verify": "hdng", "mamba1_verify": "dnBC"}
COLUMNS = ["batch", "tokens", "contender", "W", "us min", "us median", "GB/s", "% copy", "bound us", "bound by"]
RATIOS = ["x single steps", *(f"x {rival}" for rival in RIVALS)]


def key(row):
    return tuple(tuple(row[name]) if name == "shape" else row[name] for name in KEY)


def load(path):
    data = json.loads(Path(path).read_text())
    if data.get("schema") != 1:
        raise ValueError(f"{path}: schema must be 1; got {data.get('schema')}")
    return data


class Results:
    """A results file that grows: every added row is on disk at once, one measured before is replaced."""

    def __init__(self, path, machine):
        self.path = Path(path)
        rows = load(path)["rows"] if self.path.exists() else []
        self.data = {"schema": 1, "machine": machine, "rows": rows}

    def has(self, row):
        return any(key(other) == key(row) for other in self.data["rows"])

    def add(self, row):
        self.data["rows"] = [other for other in self.data["rows"] if key(other) != key(row)] + [row]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_suffix(".tmp")  # killed while it writes, the last whole file stays
        whole.write_text(json.dumps(self.data, indent=1) + "\n")
        whole.replace(self.path)


def find(rows, row, **changes):
    """The measured row that differs from `row` in `changes`, in this mix or in one that has no mix; or None."""
    for mix in (row["mix"], "any"):
        found = rows.get(key(row | changes | {"mix": mix}))
        if found and found["us_median"] is not None:
            return found
    return None


def ratios(rows, row):
    """Speed of `row`: its window as ntokens one-token steps of its own, and every rival, over it. None: no such row.

    rows: {key: row}. Above 1, this row is faster.
    """
    single = find(rows, row, ntokens=1)
    found = [single and single["us_median"] * row["ntokens"] / row["us_median"]]
    for rival in RIVALS:
        other = find(rows, row, contender=rival) if row["contender"] in OURS else None
        found.append(other and other["us_median"] / row["us_median"])
    return found


def cells(rows, row):
    head = [str(row["batch"]), str(row["ntokens"]), row["contender"]]
    if row["error"]:
        failed = row["error"] if row["error"].startswith("skipped") else f"FAILED: {row['error']}"
        return [*head, failed]
    speed = row["nbytes"] and row["nbytes"] / row["us_median"] / 1e3
    return [
        *head,
        str(row["fold_every"] or "-"),
        f"{row['us_min']:.2f}",
        f"{row['us_median']:.2f}",
        *((f"{speed:.0f}", f"{100 * speed / row['copy_gb_per_s']:.0f}") if speed else ("-", "-")),
        *((f"{row['bound_us']:.2f}", row["bound_by"]) if row["bound_us"] else ("-", "-")),
        *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios(rows, row)),
    ]


def aligned(table):
    """Lines of a table of strings, the first column to the left; a short row's last cell is not counted."""
    full = [row for row in table if len(row) == len(table[0])]
    widths = [max(len(row[i]) for row in full) for i in range(len(table[0]))]
    for row in table:
        padded = [text.rjust(width) for text, width in zip(row[1:-1], widths[1:-1], strict=False)]
        last = row[-1].rjust(widths[-1]) if len(row) == len(widths) else row[-1]
        yield "  ".join([row[0].ljust(widths[0]), *padded, last])


def lines(data):
    """The text of a results file: a table per shape, dtypes and mix."""
    yield " | ".join(f"{name} {value}" for name, value in data["machine"].items())
    yield "microseconds per launch, CUDA-graph replays, cold L2; x: times as fast as (above 1, this row is faster)"
    rows = {key(row): row for row in data["rows"]}
    groups = {}
    for row in sorted(data["rows"], key=key):
        groups.setdefault(key(row)[:4], []).append(row)
    for (shape, activations, checkpoint, mix), group in groups.items():
        yield ""
        op = group[0].get("op", "mamba2_verify")
        sizes = " ".join(f"{letter}{size}" for letter, size in zip(LETTERS[op], shape, strict=True))
        yield f"{op}, {sizes}, {activations}, {checkpoint} checkpoint, mix: {mix}"
        yield from aligned([COLUMNS + RATIOS, *(cells(rows, row) for row in group)])


def failures(data):
    return [row for row in data["rows"] if row["error"] and not row["error"].startswith("skipped")]


def main():
    for path in sys.argv[1:]:
        print("\n".join(lines(load(path))))
    failed = [row for path in sys.argv[1:] for row in failures(load(path))]
    if failed:
        sys.exit(f"{len(failed)} rows FAILED")


if __name__ == "__main__":
    main()
