"""The C interface as a C program calls it: a number that breaks a rule gives a sentence, not a signal."""

import ctypes
import re
from pathlib import Path

import pytest

import llamba_kernels

pytestmark = pytest.mark.cpu_only  # about the ordinary build and its CPU kernels

LIBRARY = ctypes.CDLL(str(Path(llamba_kernels.__file__).with_name("libllamba_cpu.so")))
LIBRARY.llamba_last_error.restype = ctypes.c_char_p
HEADER = (Path(__file__).parents[1] / "csrc" / "include" / "llamba.h").read_text()


class Cursor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("nslots", ctypes.c_int64),
        ("slot_stride", ctypes.c_int64),
        ("width", ctypes.c_int32),
        ("capacity", ctypes.c_int32),
    ]


class SlotBuffer(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("element_size", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("sizes", ctypes.c_int64 * 8),
        ("strides", ctypes.c_int64 * 8),
        ("token_dim", ctypes.c_int32),
    ]


class Operand(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4), ("dtype", ctypes.c_int)]


class Indices(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("strides", ctypes.c_int64 * 2),
        ("columns", ctypes.c_int64),
        ("is_int64", ctypes.c_int32),
    ]


TYPES = {
    "llamba_cursor": Cursor,
    "llamba_operand": Operand,
    "llamba_indices": Indices,
    "size_t": ctypes.c_size_t,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "llamba_dtype": ctypes.c_int,
    "llamba_algorithm": ctypes.c_int,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}


def struct_of(op):
    """The operator's struct, read from the header."""
    text = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)
    body = re.search(rf"typedef struct \{{([^}}]*)\}} llamba_{op}_args;", text)[1]
    fields = []
    for declaration in body.split(";")[:-1]:
        kind, names = re.fullmatch(r"\s*((?:const )?\w+\*?) (.*)", declaration).groups()
        ctype = ctypes.c_void_p if kind.endswith("*") else TYPES[kind]
        for name in names.split(", "):
            name, _, count = name.removesuffix("]").partition("[")
            fields.append((name, ctype * int(count) if count else ctype))
    return type(op, (ctypes.Structure,), {"_fields_": fields})


TYPES["llamba_selective_scan_args"] = struct_of("selective_scan")
CURSOR = Cursor(None, 2, 20, 4, 13)
LAYER = dict(nheads=1, headdim=1, dstate=16, x_heads=1, B_heads=1, C_heads=1, fold_every=1, cursor=CURSOR)
MAMBA1 = dict(d_inner=1, dstate=16, B_heads=1, C_heads=1, fold_every=1, cursor=CURSOR)
BUFFERS = "buffers must have 1 to 8 dimensions, the first of nslots = 2, and a token_dim among the others; got "


def buffers(**change):
    """One buffer [2, 3], with what a C program may get wrong."""
    good = dict(element_size=4, ndim=2, sizes=(ctypes.c_int64 * 8)(2, 3), token_dim=-1)
    buffer = SlotBuffer(**(good | change))
    return dict(nbuffers=1, buffers=ctypes.addressof(buffer), keep=buffer)


def scan(**change):
    """The forward's struct within the backward's."""
    struct = TYPES["llamba_selective_scan_args"]
    good = dict(batch=1, length=1, d_inner=4, dstate=16, B_heads=1, C_heads=1)
    return dict(scan=struct(size=ctypes.sizeof(struct), **(good | change)))


GOOD = {
    "mamba2_verify": dict(max_ntokens=1, **LAYER),
    "materialize": LAYER,
    "conv1d_verify": dict(max_ntokens=1, nheads=1, headdim=1, x_heads=1, cursor=CURSOR),
    "mamba1_verify": dict(max_ntokens=1, **MAMBA1),
    "mamba1_materialize": {name: value for name, value in MAMBA1.items() if name != "C_heads"},
    "state_import": dict(nheads=1, headdim=1, dstate=1, conv_dim=1, cursor=CURSOR),
    "selective_state_update": dict(batch=1, ntokens=1, nheads=2, headdim=4, dstate=16, ngroups=1, nslots=1),
    "slot_copy": dict(cursor=CURSOR, buffer_size=ctypes.sizeof(SlotBuffer)),
    "selective_scan": dict(batch=1, length=1, d_inner=4, dstate=16, B_heads=1, C_heads=1),
    "selective_scan_backward": scan(),
    "gated_rms_norm": dict(batch=1, ntokens=1, width=8, group_size=8, eps=1e-5),
    "rms_norm": dict(batch=1, ntokens=1, nheads=1, width=8, eps=1e-5),
    "rope": dict(batch=1, ntokens=1, nheads=1, head_dim=8, rotary_dim=8, npositions=1),
    "silu_mul": dict(batch=1, ntokens=1, width=8),
    "skinny_linear": dict(batch=1, ntokens=1, in_features=8, out_features=8),
    "argmax": dict(batch=1, ntokens=1, vocab=8),
    "attention_step": dict(batch=1, max_ntokens=1, nheads=2, kv_heads=1, head_dim=8, nslots=1, max_tokens=1),
    "kv_compact": dict(batch=0),
    "speculative_accept": dict(batch=1, max_window=1, vocab=8, temperature=1.0),
    "checkpointing_ssu": dict(batch=1, nslots=1, nheads=2, headdim=4, dstate=16, ngroups=1, ring=8, window=4),
    "causal_conv1d_update": dict(batch=1, dim=8, ntokens=1, nslots=1, state_len=3, nblocks=1, width=4),
}
WITH_CURSOR = ("mamba2_verify", "materialize", "conv1d_verify", "mamba1_verify", "mamba1_materialize", "state_import")
REFUSED = [
    ("mamba2_verify", dict(batch=-1), "batch must be at least 0; got -1"),
    ("mamba2_verify", dict(max_ntokens=0), "max_ntokens must be at least 1; got 0"),
    ("mamba2_verify", dict(nheads=0), "nheads must be 1 to 16777216; got 0"),
    ("mamba2_verify", dict(headdim=0), "headdim must be 1 to 16777216; got 0"),
    ("mamba2_verify", dict(dstate=24), "dstate must be a multiple of 16 up to 256; got 24"),
    ("mamba2_verify", dict(B_heads=2), "B_heads must divide nheads = 1; got 2"),
    ("mamba2_verify", dict(fold_every=0), "fold_every must be at least 1; got 0"),
    ("materialize", dict(batch=-1), "batch must be at least 0; got -1"),
    ("materialize", dict(dstate=0), "dstate must be a multiple of 16 up to 256; got 0"),
    ("conv1d_verify", dict(batch=-1), "batch must be at least 0; got -1"),
    ("conv1d_verify", dict(max_ntokens=0), "max_ntokens must be 1 to 16777216; got 0"),
    ("conv1d_verify", dict(headdim=0), "headdim must be 1 to 16777216; got 0"),
    ("conv1d_verify", dict(x_heads=2), "x_heads must divide nheads = 1; got 2"),
    *((op, dict(cursor=Cursor(None, -1, 20, 4, 13)), "nslots must be at least 0; got -1") for op in WITH_CURSOR),
    ("mamba1_verify", dict(max_ntokens=0), "max_ntokens must be at least 1; got 0"),
    ("mamba1_verify", dict(d_inner=0), "d_inner must be 1 to 16777216; got 0"),
    ("mamba1_verify", dict(dstate=80), "dstate must be a multiple of 16 up to 64; got 80"),
    ("mamba1_verify", dict(C_heads=2), "C_heads must divide d_inner = 1; got 2"),
    ("mamba1_materialize", dict(B_heads=0), "B_heads must divide d_inner = 1; got 0"),
    ("mamba1_materialize", dict(x_dim=-1), "x_dim must be at least 0; got -1"),
    ("state_import", dict(batch=-1), "batch must be at least 0; got -1"),
    ("state_import", dict(conv_dim=0), "conv_dim must be at least 1; got 0"),
    ("selective_state_update", dict(batch=-1), "batch must be 0 to 16777216; got -1"),
    ("selective_state_update", dict(ntokens=-1), "ntokens must be 0 to 2147483647; got -1"),
    ("selective_state_update", dict(nslots=2**62), f"nslots must be 0 to 2147483647; got {2**62}"),
    ("selective_state_update", dict(buffer=1, nbuffer=-1), "nbuffer must be 0 to 2147483647; got -1"),
    ("selective_state_update", dict(buffer=1, buffer_steps=-1), "buffer_steps must be 0 to 2147483647; got -1"),
    ("selective_state_update", dict(nheads=0), "nheads must be 1 to 16777216; got 0"),
    ("selective_state_update", dict(headdim=0), "headdim must be 1 to 16777216; got 0"),
    ("selective_state_update", dict(dstate=257), "dstate must be 1 to 256; got 257"),
    ("selective_state_update", dict(ngroups=3), "ngroups must divide nheads = 2; got 3"),
    (
        "selective_state_update",
        dict(nslots=0),
        "state must have a slot for each of 1 sequences unless state_batch_indices says which; got 0",
    ),
    ("slot_copy", dict(batch=-1), "batch must be at least 0; got -1"),
    ("slot_copy", dict(buffer_size=8), f"buffer_size must be that of the struct, {ctypes.sizeof(SlotBuffer)}; got 8"),
    ("slot_copy", buffers(ndim=0), BUFFERS + "ndim 0, element_size 4, token_dim -1 in buffer 0"),
    ("slot_copy", buffers(ndim=9), BUFFERS + "ndim 9, element_size 4, token_dim -1 in buffer 0"),
    ("slot_copy", buffers(token_dim=2), BUFFERS + "ndim 2, element_size 4, token_dim 2 in buffer 0"),
    ("slot_copy", buffers(element_size=0), BUFFERS + "ndim 2, element_size 0, token_dim -1 in buffer 0"),
    ("selective_scan", dict(batch=-1), "batch must be at least 0; got -1"),
    ("selective_scan", dict(length=-1), "length must be at least 0; got -1"),
    ("selective_scan", dict(d_inner=0), "d_inner must be 1 to 16777216; got 0"),
    ("selective_scan", dict(dstate=257), "dstate must be 1 to 256; got 257"),
    ("selective_scan", dict(B_heads=3), "B_heads must divide d_inner = 4; got 3"),
    ("selective_scan", dict(C_heads=0), "C_heads must divide d_inner = 4; got 0"),
    ("selective_scan", dict(states=1), "state_every must be at least 1; got 0"),
    ("selective_scan", dict(cu_seqlens=1, batch=2), "batch must be 1 with cu_seqlens; got 2"),
    ("selective_scan", dict(cu_seqlens=1, nsequences=-1), "nsequences must be at least 0; got -1"),
    ("selective_scan_backward", scan(batch=-1), "batch must be at least 0; got -1"),
    ("selective_scan_backward", scan(C_heads=3), "C_heads must divide d_inner = 4; got 3"),
    ("selective_scan_backward", scan(length=65), "chunk_states must be given beyond 64 tokens; got none"),
    ("selective_scan_backward", dict(grad_states=1), "state_every must be at least 1; got 0"),
    ("gated_rms_norm", dict(batch=-1), "batch must be at least 0; got -1"),
    ("gated_rms_norm", dict(ntokens=-1), "ntokens must be at least 0; got -1"),
    ("gated_rms_norm", dict(width=-8), "width must be at least 0; got -8"),
    ("gated_rms_norm", dict(group_size=0), "group_size must divide the width of x, 8; got 0"),
    ("gated_rms_norm", dict(eps=0), "eps must be positive; got 0"),
    ("rms_norm", dict(batch=-1), "batch must be at least 0; got -1"),
    ("rms_norm", dict(ntokens=-1), "ntokens must be at least 0; got -1"),
    ("rms_norm", dict(nheads=-1), "nheads must be at least 0; got -1"),
    ("rms_norm", dict(width=-8), "width must be at least 0; got -8"),
    ("rms_norm", dict(eps=0), "eps must be positive; got 0"),
    ("rope", dict(batch=-1), "batch must be at least 0; got -1"),
    ("rope", dict(ntokens=-1), "ntokens must be at least 0; got -1"),
    ("rope", dict(nheads=-1), "nheads must be at least 0; got -1"),
    ("rope", dict(npositions=-1), "npositions must be at least 0; got -1"),
    ("rope", dict(head_dim=-1), "head_dim must be at least 0; got -1"),
    (
        "rope",
        dict(rotary_dim=7),
        "rotary_dim (twice the width of cos) must be even and at most head_dim = 8; got 7",
    ),
    ("silu_mul", dict(batch=-1), "batch must be at least 0; got -1"),
    ("silu_mul", dict(ntokens=-1), "ntokens must be at least 0; got -1"),
    ("silu_mul", dict(width=-1), "width must be at least 0; got -1"),
    ("skinny_linear", dict(batch=-1), "batch must be at least 0; got -1"),
    ("skinny_linear", dict(ntokens=-2), "ntokens must be at least 0; got -2"),
    ("skinny_linear", dict(in_features=-1), "in_features must be at least 0; got -1"),
    ("skinny_linear", dict(out_features=-1), "out_features must be at least 0; got -1"),
    ("argmax", dict(batch=-1), "batch must be at least 0; got -1"),
    ("argmax", dict(ntokens=-1), "ntokens must be at least 0; got -1"),
    ("argmax", dict(vocab=0), "vocab must be at least 1; got 0"),
    ("attention_step", dict(batch=-1), "batch must be 0 to 2147483647; got -1"),
    ("attention_step", dict(max_ntokens=-1), "max_ntokens must be 0 to 2147483647; got -1"),
    ("attention_step", dict(nheads=0), "nheads must be at least 1; got 0"),
    ("attention_step", dict(kv_heads=0), "kv_heads must be at least 1; got 0"),
    ("attention_step", dict(kv_heads=3), "kv_heads must divide nheads = 2; got 3"),
    ("attention_step", dict(head_dim=257), "head_dim must be 1 to 256; got 257"),
    ("attention_step", dict(nslots=-1), "nslots must be at least 0; got -1"),
    ("attention_step", dict(max_tokens=-1), "max_tokens must be at least 0; got -1"),
    ("attention_step", dict(sliding_window=-1), "sliding_window must be at least 0; got -1"),
    ("attention_step", dict(scale=float("nan")), "scale must be finite; got nan"),
    *(
        ("kv_compact", {name: -1}, f"{name} must be at least 0; got -1")
        for name in ("batch", "max_window", "nslots", "kv_heads", "max_tokens", "head_dim", "ncaches")
    ),
    ("speculative_accept", dict(batch=-1), "batch must be at least 0; got -1"),
    ("speculative_accept", dict(max_window=0), "max_window must be 1 to 2147483647; got 0"),
    ("speculative_accept", dict(max_window=2**31), "max_window must be 1 to 2147483647; got 2147483648"),
    ("speculative_accept", dict(vocab=0), "vocab must be 1 to 2147483647; got 0"),
    ("speculative_accept", dict(vocab=2**31), "vocab must be 1 to 2147483647; got 2147483648"),
    ("speculative_accept", dict(temperature=0), "temperature must be positive and finite; got 0"),
    *(
        ("causal_conv1d_update", {name: least - 1}, f"{name} must be at least {least}; got {least - 1}")
        for name, least in (("batch", 0), ("dim", 0), ("nblocks", 1), ("window_tokens", 0))
    ),
    *(
        ("causal_conv1d_update", {name: -1}, f"{name} must be 0 to 2147483647; got -1")
        for name in ("ntokens", "nslots", "nwindows")
    ),
    *(
        ("checkpointing_ssu", {name: least - 1}, f"{name} must be {least} to 16777216; got {least - 1}")
        for name, least in (("batch", 0), ("ntokens", 0), ("nheads", 1), ("headdim", 1), ("ring", 0))
    ),
    ("checkpointing_ssu", dict(nslots=-1), "nslots must be 0 to 2147483647; got -1"),
    ("checkpointing_ssu", dict(window=9), "window must be 0 to 8; got 9"),
    ("checkpointing_ssu", dict(dstate=8), "dstate must be a multiple of 16 up to 256; got 8"),
    ("checkpointing_ssu", dict(ngroups=3), "ngroups must divide nheads = 2; got 3"),
    ("checkpointing_ssu", dict(batch=2), "state must have a slot for each of 2 sequences; got 1"),
    ("causal_conv1d_update", dict(width=5), "width must be 2 to 4; got 5"),
    ("causal_conv1d_update", dict(state_len=2), "state_len must be 3 to 2147483647; got 2"),
    ("causal_conv1d_update", dict(batch=2), "conv_state must have a slot for each of 2 sequences; got 1"),
]


@pytest.mark.parametrize("op, change, sentence", REFUSED, ids=[f"{op} {sentence}" for op, _, sentence in REFUSED])
def test_numbers_that_break_a_rule(op, change, sentence):
    """All pointers are null: a refused call reads and writes nothing."""
    struct = struct_of(op)
    fields = {name: value for name, value in (GOOD[op] | change).items() if name != "keep"}  # a buffer, kept alive
    args = struct(size=ctypes.sizeof(struct), **fields)
    assert getattr(LIBRARY, f"llamba_{op}_cpu")(ctypes.byref(args)) == 1
    assert LIBRARY.llamba_last_error().decode() == f"{op}: {sentence}"


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(dt=Operand(1, dtype=3)), "dt must be float32, bfloat16 or float16; got code 3"),
        (dict(A=Operand(1, (0, 64, 16, 2))), "A must have a last stride of 0 or 1; got 2"),
    ],
)
def test_operands_of_selective_state_update(change, sentence):
    struct = struct_of("selective_state_update")
    args = struct(size=ctypes.sizeof(struct), **GOOD["selective_state_update"], **change)
    assert LIBRARY.llamba_selective_state_update_cpu(ctypes.byref(args)) == 2
    assert LIBRARY.llamba_last_error().decode() == f"selective_state_update: {sentence}"


@pytest.mark.parametrize("op", ["kv_compact", "attention_step", "mamba1_verify"])
def test_slots_beyond_all_memory(op):
    count = {"cursor": Cursor(None, 2**62, 20, 4, 13)} if op == "mamba1_verify" else {"nslots": 2**62}
    struct = struct_of(op)
    args = struct(size=ctypes.sizeof(struct), **GOOD[op] | count)
    assert getattr(LIBRARY, f"llamba_{op}_cpu")(ctypes.byref(args)) == 4
    assert LIBRARY.llamba_last_error().decode() == f"{op}: memory must suffice for the scratch; got none"
