"""Whether what is about to be made fits this machine's memory: asked before any of it is."""

from pathlib import Path

import torch

from .cache import DecodeCache, Session, fold_every_for
from .models import LlambaConfig, LlambaForCausalLM
from .models.workspace import Workspace

CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """What can still be allocated: the machine's estimate, or what the container's limit leaves, if that is less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    for limit, used, inactive in (  # version 2, version 1
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        text = (CGROUP / limit).read_text().strip() if (CGROUP / limit).exists() else "max"
        if text != "max":
            statistics = (CGROUP / used).with_name("memory.stat").read_text().splitlines()
            files = next(int(line.split()[1]) for line in statistics if line.split()[0] == inactive)  # given back
            available = min(available, int(text) - int((CGROUP / used).read_text()) + files)
    return max(0, available)


def tensor_bytes(thing) -> int:
    """Of all tensors in an object, however nested."""
    if isinstance(thing, torch.Tensor):
        return thing.numel() * thing.element_size()
    if isinstance(thing, dict):
        return sum(map(tensor_bytes, thing.values()))
    if isinstance(thing, (list, tuple)):
        return sum(map(tensor_bytes, thing))
    return tensor_bytes(vars(thing)) if hasattr(thing, "__dict__") else 0


def slot_bytes(config: LlambaConfig, max_tokens: int, session: Session, dtype: torch.dtype) -> tuple[int, int]:
    """What a sequence takes in a decoding session: in its cache, and in the memory of a step."""
    with torch.device("meta"):
        cache = DecodeCache(config, max_tokens, session, dtype=dtype)
        workspace = Workspace(config, dtype, 1, session.max_window)
    return tensor_bytes([cache.layers, cache.cursor.table]), tensor_bytes(workspace)


def decoding_bytes(config: LlambaConfig, max_tokens: int, window: int, dtype: torch.dtype) -> dict[str, int]:
    """What decoding one sequence takes, by what it is for: parameters, cache, memory of a step."""
    with torch.device("meta"):
        model = LlambaForCausalLM(config).to(dtype)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    session = Session(max_window=window, fold_every=fold_every_for(config), width=config.mamba_d_conv)
    cache, workspace = slot_bytes(config, max_tokens, session, dtype)
    return {"weights": weights, "cache": cache, "workspace": workspace}


def check_slots(call: str, batch: int, config: LlambaConfig, max_tokens: int, session: Session, dtype: torch.dtype):
    """Refuses more sequences than memory has room for, in the name of `call`."""
    each, available = sum(slot_bytes(config, max_tokens, session, dtype)), available_bytes()
    if batch * each > available:
        raise ValueError(
            f"{call}: batch must be at most what fits the {available:,} bytes of memory that are available, at "
            f"{each:,} bytes for each sequence of up to max_tokens = {max_tokens}; got {batch}"
        )
