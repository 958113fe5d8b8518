"""checkpointing_ssu, steps that keep the state and steps that store it, against its reference in torch (fp32)."""

import pytest
import torch
from harness import cold_copies

from llamba_kernels.ops import checkpointing_ssu
from llamba_kernels.testing_dropins import Ring, make_checkpointing_ssu_parameters, make_checkpointing_ssu_tokens
from python_ref.checkpointing_ssu import checkpointing_ssu_ref

LAYERS = {"h16 d64 n128": (16, 64, 128, 1), "h80 d64 n128": (80, 64, 128, 1)}
WINDOW = 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tokens, previous", [(1, 4), (4, 4), (4, 8)])
@pytest.mark.parametrize("layer", LAYERS)
def bench_checkpointing_ssu(row, layer, tokens, previous, dtype):
    sizes = LAYERS[layer]
    parameters = make_checkpointing_ssu_parameters(*sizes[:3]) | dict(dt_softplus=True)
    call = make_checkpointing_ssu_tokens(1, tokens, *sizes, gate=False, dtype=dtype) | parameters
    out = torch.empty_like(call["x"])

    def make():
        ring = Ring(1, *sizes, WINDOW, tokens, dtype=dtype, state_dtype=torch.float32, poison=False)
        ring.previous.fill_(previous)
        return ring

    def check():
        ring, expected = make(), make()
        expected.state, expected.ring_start = ring.state.clone(), ring.ring_start
        reference = checkpointing_ssu_ref(*expected.arguments(), **call)
        tolerance = 1e-4 if dtype == torch.float32 else 1e-2
        result = checkpointing_ssu(*ring.arguments(), **call)
        torch.testing.assert_close(result.double(), reference, rtol=tolerance, atol=tolerance)

    stores = previous + tokens > WINDOW
    nbytes = make().state.nbytes * (2 if stores else 1)
    row(
        f"{layer}, {tokens} after {previous}, {'stores' if stores else 'keeps'}, {str(dtype)[6:]}",
        lambda ring: checkpointing_ssu(*ring.arguments(), **call, out=out),
        lambda ring: checkpointing_ssu_ref(*ring.arguments(), **call, compute_dtype=torch.float32),
        cold_copies(make, nbytes)[:128],
        check,
        nbytes,
    )
