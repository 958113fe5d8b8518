"""Inputs of the drop-in operators for tests and benchmarks, and the same formulas in PyTorch."""

import torch

from .ops import checkpointing_ssu


def make_causal_conv1d_update_inputs(
    batch=3,
    dim=40,
    seqlen=1,
    width=4,
    *,
    state="shifted",
    state_len=None,
    nslots=None,
    bias=True,
    activation="silu",
    packed=False,
    blocks=0,
    tree=False,
    windows=False,
    dtype=torch.float32,
    state_dtype=None,
    weight_dtype=None,
):
    """Keyword arguments. state: "shifted", "ring" or "drafts". packed: sequences of 0 to seqlen tokens, one after the
    other. blocks: slots of a sequence. More slots than are needed: sequence 1 of several is padding.
    """
    least = width - 2 + seqlen if state == "drafts" else width - 1
    state_len = state_len or max(least, width - 1)
    lengths = torch.randint(0, seqlen + 1, (batch,)) if packed else torch.full((batch,), seqlen)
    shape = (int(lengths.sum()), dim) if packed else (batch, dim, seqlen)
    nslots = nslots or max(batch * max(blocks, 1), 1)
    indices = torch.randperm(nslots)[: batch * max(blocks, 1)].view(batch, max(blocks, 1)).int()
    if batch > 2 and nslots > indices.numel():
        indices[1] = -1
    inputs = dict(
        x=torch.randn(shape).to(dtype),
        conv_state=torch.randn(nslots, dim, state_len).to(state_dtype or dtype),
        weight=(torch.randn(dim, width) / width**0.5).to(weight_dtype or dtype),
        bias=torch.randn(dim).to(weight_dtype or dtype) if bias else None,
        activation=activation,
        conv_state_indices=indices if blocks else indices[:, 0],
    )
    if state == "ring":
        inputs["cache_seqlens"] = torch.randint(0, 1024, (batch,), dtype=torch.int32)
    if state == "drafts":
        inputs["num_accepted_tokens"] = torch.randint(1, state_len - width + 3, (batch,), dtype=torch.int32)
    if packed:
        inputs["query_start_loc"] = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    if blocks:
        inputs["initial_state_idx"] = torch.randint(0, blocks, (batch,), dtype=torch.int32)
        inputs["block_idx_last_scheduled_token"] = torch.randint(0, blocks, (batch,), dtype=torch.int32)
    if tree:
        parents = [[int(torch.randint(-1, max(t, 1), ())) for t in range(seqlen)] for _ in range(batch)]
        inputs["retrieve_parent_token"] = torch.tensor(parents, dtype=torch.int64).view(batch, seqlen)
    if windows:
        inputs["intermediate_conv_window"] = torch.zeros(nslots, seqlen, dim, width - 1).to(state_dtype or dtype)
    return inputs


def causal_conv1d_formula(history, weight, bias, activation):
    """history (batch, dim, width-1 + tokens) -> (batch, dim, tokens) fp32: the conv in torch, fp32."""
    weight, bias = weight.float(), None if bias is None else bias.float()
    out = torch.nn.functional.conv1d(history.float(), weight.unsqueeze(1), bias, groups=weight.shape[0])
    return torch.nn.functional.silu(out) if activation else out


class Ring:
    """A layer's states and rings, and the two cursors of each slot, which the caller of checkpointing_ssu owns."""

    def __init__(self, nslots, nheads, headdim, dstate, ngroups, window, tokens, *, dtype, state_dtype, poison=True):
        """window: W; tokens: most of a call. poison: NaN in all rows of the rings, which start anywhere."""
        rows, fill = window + tokens, torch.nan if poison else 0.0
        self.window, self.tokens = window, tokens
        self.state = torch.randn(nslots, nheads, headdim, dstate).to(state_dtype)
        self.x_cache = torch.full((nslots, nheads, rows, headdim), fill, dtype=dtype)
        self.B_cache = torch.full((nslots, ngroups, rows, dstate), fill, dtype=dtype)
        self.dt_cache = torch.full((nslots, nheads, rows), fill)
        self.ring_start = torch.randint(0, rows, (nslots,), dtype=torch.int32)
        self.previous = torch.zeros(nslots, dtype=torch.int32)

    def arguments(self):
        """The operator's first six."""
        return self.state, self.x_cache, self.B_cache, self.dt_cache, self.ring_start, self.previous

    def commit(self, slot, tokens, accepted):
        """After a call with so many tokens of the slot, of which so many stay."""
        previous = int(self.previous[slot])
        if previous + tokens > self.window:
            self.ring_start[slot] = (int(self.ring_start[slot]) + previous) % self.x_cache.shape[2]
            previous = 0
        self.previous[slot] = previous + accepted


def make_checkpointing_ssu_parameters(nheads, headdim, dstate, dtype=torch.float32):
    """A, D, dt_bias, of which each head has one number, as views."""
    A = (-torch.rand(nheads) - 0.5)[:, None, None].expand(nheads, headdim, dstate)
    D, dt_bias = (torch.randn(nheads).to(dtype)[:, None].expand(nheads, headdim) for _ in "Db")
    return dict(A=A, D=D, dt_bias=dt_bias)


def make_checkpointing_ssu_tokens(batch, tokens, nheads, headdim, dstate, ngroups, gate=True, dtype=torch.float32):
    """x, dt, B, C and, with a gate, z."""
    x, z = (torch.randn(batch, tokens, nheads, headdim).to(dtype) for _ in "xz")
    B, C = (torch.randn(batch, tokens, ngroups, dstate).to(dtype) for _ in "BC")
    dt = torch.randn(batch, tokens, nheads).to(dtype)[..., None].expand(x.shape)
    return dict(x=x, dt=dt, B=B, C=C) | (dict(z=z) if gate else {})


def some_checkpointing_ssu_outputs(dtype):
    """Of two steps, the second of which stores its state; sizes that fill vectors and sizes that do not."""
    results = {}
    for headdim, dstate in ((16, 64), (5, 48), (9, 112)):
        layer = 2, headdim, dstate, 1
        ring = Ring(1, *layer, 5, 5, dtype=dtype, state_dtype=dtype)
        call = make_checkpointing_ssu_parameters(*layer[:3]) | dict(dt_softplus=True)
        for step in range(2):
            tokens = make_checkpointing_ssu_tokens(1, 5, *layer, dtype=dtype)
            case = f"checkpointing_ssu {dtype} headdim {headdim} dstate {dstate} step {step}"
            results[case] = checkpointing_ssu(*ring.arguments(), **tokens, **call)
            ring.commit(0, 5, 4)
        results |= {f"{case} state": ring.state, f"{case} dt": ring.dt_cache.nan_to_num()}
    return results
