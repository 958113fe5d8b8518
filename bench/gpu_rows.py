"""The rows that the GPU suite measures, and those that a results file lacks: `python bench/gpu_rows.py FILE`, which
fails if there are any. What a skipped or failed row has is in the file; what is missing was not tried.
"""

import sys

from gpu_cases import ANY, NO_LIVE, STEADY, core_cases
from gpu_peers import PEERS
from gpu_results import OURS, key, load

RESULTS = ("us_min", "us_median", "nbytes", "bound_us", "bound_by", "copy_gb_per_s", "fold_every")


def empty_rows(contender, case):
    """The rows of one contender and case, one per mix, without results."""
    shape = [case.shape.nheads, case.shape.headdim, case.shape.dstate, case.shape.ngroups]
    sizes = {"shape": shape, "batch": case.batch, "ntokens": case.ntokens}
    dtypes = {"activations": case.activations, "checkpoint": case.checkpoint}
    results = dict.fromkeys((*RESULTS, "error_ratios", "error"))
    mixes = (STEADY, NO_LIVE) if contender in OURS or PEERS[contender][2] else (ANY,)
    return [{**sizes, **dtypes, "mix": mix, "contender": contender, **results} for mix in mixes]


def missing(data):
    """(rows that the core cases and the contenders installed there should have, those of them that `data` lacks)."""
    peers = [name for name, (package, _, _) in PEERS.items() if data["machine"]["peers"][package] != "not installed"]
    there = {key(row) for row in data["rows"]}
    rows = [(case, row) for name in (*OURS, *peers) for case in core_cases() for row in empty_rows(name, case)]
    return len(rows), [f"{row['contender']}: {case}, {row['mix']}" for case, row in rows if key(row) not in there]


def main():
    count, lacking = missing(load(sys.argv[1]))
    print("\n".join([*lacking, f"{len(lacking)} of {count} rows were not measured"]))
    sys.exit(bool(lacking))


if __name__ == "__main__":
    main()
