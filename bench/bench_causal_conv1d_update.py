"""causal_conv1d_update against the same steps in torch (concatenate, conv1d, SiLU, copy back), as transformers takes
them; states with channels last (vLLM) and with tokens last (transformers)."""

import pytest
import torch
from harness import cold_copies

from llamba_kernels.ops import causal_conv1d_update
from llamba_kernels.testing_dropins import causal_conv1d_formula, make_causal_conv1d_update_inputs

SIZES = {"mamba2-8b": 8192 + 2048, "mamba-2.8b": 5120}


def eager(inputs):
    x, state, weight, bias = (inputs[name] for name in ("x", "conv_state", "weight", "bias"))
    whole = torch.cat([state, x], -1)
    state.copy_(whole[..., -state.shape[-1] :])
    return causal_conv1d_formula(whole, weight, bias, True).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("batch, seqlen", [(1, 1), (1, 4), (16, 1)])
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels-last", "tokens-last"])
@pytest.mark.parametrize("size", SIZES)
def bench_causal_conv1d_update(row, size, channels_last, batch, seqlen, dtype):
    def make():
        inputs = make_causal_conv1d_update_inputs(batch, SIZES[size], seqlen, dtype=dtype) | dict(
            conv_state_indices=None
        )
        if channels_last:
            for name in ("x", "conv_state"):
                inputs[name] = inputs[name].transpose(1, 2).contiguous().transpose(1, 2)
        return inputs

    inputs, out = make(), torch.empty(batch, SIZES[size], seqlen, dtype=dtype)
    nbytes = sum(inputs[name].nbytes for name in ("x", "conv_state", "conv_state", "x", "weight", "bias"))

    def check():
        expected = eager(inputs | dict(conv_state=inputs["conv_state"].clone()))
        tolerance = 2e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(causal_conv1d_update(**inputs), expected, rtol=tolerance, atol=tolerance)

    layout = "channels" if channels_last else "tokens"
    row(
        f"{size} {SIZES[size]}, batch {batch}, {seqlen} tokens, {layout} last, {str(dtype)[6:]}",
        lambda inputs: causal_conv1d_update(**inputs, out=out),
        eager,
        cold_copies(make, nbytes)[:256],
        check,
        nbytes,
    )
