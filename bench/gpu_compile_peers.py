"""Compiles the rivals' kernels of the core rows in several processes: else the first call of each would, one by one."""

import dataclasses
import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch
from gpu_cases import NO_LIVE, core_cases
from gpu_peers import PEERS


def compile_one(name, case):
    """Runs a step of one sequence; returns what went wrong, or None."""
    try:
        PEERS[name][1](case, "cuda", NO_LIVE).launches[0]()
        torch.cuda.synchronize()
    except Exception as problem:  # whatever it is, the benchmark will meet it again and report it
        return f"{type(problem).__name__}: {problem}"


def main():
    names = [name for name, (package, _, _) in PEERS.items() if importlib.util.find_spec(package)]
    cases = list(dict.fromkeys(dataclasses.replace(case, batch=1) for case in core_cases()))
    with ProcessPoolExecutor(8, multiprocessing.get_context("spawn")) as pool:
        jobs = [(name, case, pool.submit(compile_one, name, case)) for case in cases for name in names]
        for name, case, job in jobs:
            print(name, case, job.result() or "compiled", sep=" | ", flush=True)


if __name__ == "__main__":
    main()
