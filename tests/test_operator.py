"""What torch would trip over before an operator sees it: one sentence from every operator's Python function."""

import inspect

import pytest
import torch
from helpers import assert_refused

from llamba_kernels import dropins, ops
from llamba_kernels.cache import Session
from llamba_kernels.ops import gated_rms_norm, skinny_linear, speculative_accept
from llamba_kernels.testing import make_mamba2_layer

X, WEIGHT, OUT = torch.ones(2, 8), torch.ones(5, 8), torch.ones(2, 5)


def linear(**change):
    return skinny_linear, dict(x=X, weight=WEIGHT) | change


def norm(**change):
    return gated_rms_norm, dict(x=X, z=None, weight=X[0], eps=1e-5, group_size=8) | change


def accept(**change):
    logits, drafts, ntokens = torch.ones(1, 1, 3), torch.ones(1, 0, dtype=torch.int64), torch.ones(1, dtype=torch.int32)
    return speculative_accept, dict(logits=logits, drafts=drafts, ntokens=ntokens) | change


ONE_DEVICE = "tensors must be on one device, all on meta or none; got cpu, meta"
REFUSED = {
    "None, out allocated": (linear(x=None), TypeError, "x must be a tensor; got None"),
    "None, out given": (linear(weight=None, out=OUT), TypeError, "weight must be a tensor; got None"),
    "int for a tensor": (linear(x=3), TypeError, "x must be a tensor; got int 3"),
    "string": (linear(bias="none", out=OUT), TypeError, "bias must be a tensor or None; got str 'none'"),
    "int for an optional tensor": (accept(uniforms=3), TypeError, "uniforms must be a tensor or None; got int 3"),
    "tensor for a pair": (
        accept(out=torch.ones(1)),
        TypeError,
        "out must be a pair, (accepted, next_token), or None; got Tensor",
    ),
    "None for a number": (norm(eps=None), TypeError, "eps must be a number; got None"),
    "float for an int": (norm(group_size=8.0), TypeError, "group_size must be an int; got float 8.0"),
    "tensor for an int": (
        norm(group_size=torch.tensor(8.5)),
        TypeError,
        "group_size must be an int; got Tensor tensor(8.5000)",
    ),
    "large int": (norm(group_size=2**70), ValueError, "group_size must be an int of fewer than 64 bits; got one of 71"),
    "large float": (norm(eps=10**400), ValueError, "eps must be a number of fewer than 1024 bits; got one of 1329"),
    "negative view": (
        linear(out=torch._neg_view(OUT)),
        TypeError,
        "tensors must be plain strided ones; got a negative view",
    ),
    "sparse": (
        linear(x=X.to_sparse()),
        TypeError,
        "tensors must be plain strided ones on a device that the operator's docstring names; "
        "got sparse_coo on cpu, strided on cpu",
    ),
    "complex dtype": (
        linear(x=X.to(torch.complex64)),
        TypeError,
        "x must be float32, bfloat16 or float16; got ComplexFloat",
    ),
    "x on meta": (linear(x=X.to("meta")), TypeError, ONE_DEVICE),
    "weight on meta": (linear(weight=WEIGHT.to("meta")), TypeError, ONE_DEVICE),
    "meta beside None": (
        norm(x=X.to("meta"), weight=None),
        TypeError,
        "weight must be a tensor; got None",
    ),
}


@pytest.mark.parametrize("call, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(call, kind, sentence):
    function, arguments = call
    assert_refused(kind, f"{function.__name__}: {sentence}", function, **arguments)


def test_numbers_of_other_kinds_are_numbers():
    """numpy's count as Python's, also while the sentence about another argument is looked for."""
    numpy = pytest.importorskip("numpy")
    function, arguments = norm(group_size=numpy.int64(8), eps=numpy.float32(1e-5))
    assert function(**arguments).shape == X.shape
    sentence = "gated_rms_norm: weight must have shape (width) = (8,); got (7,)"
    assert_refused(ValueError, sentence, function, **(arguments | {"weight": X[0, 1:]}))


def test_all_on_meta_computes_the_shape():
    assert skinny_linear(X.to("meta"), WEIGHT.to("meta")).shape == (2, 5)


def test_wrong_calls_are_pythons():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'weight'"):
        skinny_linear(X)
    with pytest.raises(TypeError, match="unexpected keyword argument 'wieght'"):
        skinny_linear(X, wieght=WEIGHT)


def test_arguments_have_one_order_everywhere():
    """Of the Python function and the schema; outputs last, a pair of them as `out`, or those it always makes itself."""
    for name in ops.__all__:
        if getattr(dropins, name, None) is getattr(ops, name):
            continue  # its arguments are another package's
        schema = [argument.name for argument in getattr(torch.ops.llamba, name).default._schema.arguments]
        parameters = list(inspect.signature(getattr(ops, name)).parameters)
        if parameters[-1] == "out" and "out" not in schema:
            parameters, schema = parameters[:-1], schema[:-2]
        if parameters[-1].startswith("return_"):
            parameters, schema = parameters[:-1], schema[: schema.index("y")]
        assert parameters == schema, name


def test_a_batch_of_padding_alone_is_no_work():
    layer = make_mamba2_layer(2, 4, 16, 16, session=Session(max_window=2))
    padding = torch.full((3,), -1, dtype=torch.int32)
    assert not layer.verify(*layer.tokens(3, 2), padding).any()
    p = layer.parameters
    parameters = p["conv_weight"], p["conv_bias"], p["A"], p["dt_bias"]
    buffers = layer.checkpoint, layer.rows, layer.dt_rows, layer.cursor.table
    for each in ops.materialize(*parameters, *buffers, padding, **layer.heads, fold_every=1):
        assert not each.any()
