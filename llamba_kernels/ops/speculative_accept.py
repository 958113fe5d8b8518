"""Acceptance: which drafts of a window stay, and the token that follows them."""

import torch

from .._load import call, operator


@operator
def speculative_accept(logits, drafts, ntokens, draft_probs=None, uniforms=None, temperature=1.0, *, out=None):
    """Decide a verified window so that the emitted tokens have exactly the target model's distribution.

    Input 0 of a window is the pending token, the others are drafts; logits row i predicts the token after input i.

        greedy (uniforms None): draft i stays while it is the argmax of row i (the lowest index of ties); then comes the
            argmax of the row after the last input that stays.
        sampled: with p = softmax(logits row i / temperature), draft i stays if u_i q(draft) < p(draft). The first that
            does not is replaced by a token of (p - q)+, normalised; after the last draft comes a token of p.

    The exponentials are fp32, the sums and comparisons double. No gradient.

    Args:
        logits: (batch, max_window, vocab) float32, bfloat16 or float16, the target's. Last stride 1. A masked
            token is -inf.
        drafts: (batch, max_window - 1) int64. Last stride 1.
        ntokens: (batch) int32, 1 to max_window: the inputs of each sequence; what lies beyond them is not read.
        draft_probs: (batch, max_window - 1, vocab) float32, the draft model's q, each row summing to 1 (not checked),
            or None: the drafts were certain. Last stride 1.
        uniforms: (batch, max_window) float64 in [0, 1), independent: column i decides draft i, the last column the next
            token. float32 is widened; its 2^-24 grid is then the resolution of the probabilities. None: greedy.
        temperature: float, positive.
        out: (accepted, next_token) to write to, or None: new tensors.
    Writes: out.
    Returns: accepted, (batch) int32: inputs that stay, the pending one included, 1 to ntokens;
        next_token, (batch) int64.
    Raises: ValueError (shapes, numbers, draft ids, NaN), TypeError (dtypes, devices, strides, overlap).
        Nothing is written then. On CUDA the data is not checked: a sequence whose ntokens, or whose logits, drafts,
        draft_probs or uniforms, as far as its decision reads them, break a rule gets accepted 0 and next_token -1.
    Devices: CPU, CUDA.
    Source: csrc/speculative_accept; Leviathan et al., arXiv 2211.17192. Reference: python_ref/speculative_accept.py.
    """
    if uniforms is not None and uniforms.dtype == torch.float32:
        uniforms = uniforms.double()
    if out is None:
        batch, device = logits.shape[:1], logits.device
        out = torch.empty(batch, dtype=torch.int32, device=device), torch.empty(batch, dtype=torch.int64, device=device)
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(
            f"speculative_accept: out must be a pair, (accepted, next_token), or None; got {type(out).__name__}"
        )
    accepted, next_token = out
    call(
        torch.ops.llamba.speculative_accept.default,
        logits,
        drafts,
        ntokens,
        draft_probs,
        uniforms,
        temperature,
        accepted,
        next_token,
    )
    return accepted, next_token
