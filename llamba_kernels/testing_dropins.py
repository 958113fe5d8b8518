"""Inputs of the drop-in operators for tests and benchmarks, and the same formulas in PyTorch."""

import torch


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
