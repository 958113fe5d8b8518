"""transformers' own models with its functions bound to our operators: the same logits, ours really run, all undone."""

import importlib
from collections import Counter

import pytest
import torch
import transformers as hf
from helpers import assert_bitwise, assert_close_to_ref, assert_refused
from torch.utils._python_dispatch import TorchDispatchMode

from llamba_kernels.integrations import transformers as integration

pytestmark = pytest.mark.cpu_only  # the tensors are transformers' own and stay where they are
STEPS, PROMPT, VOCAB = 20, 11, 101
COMMON = dict(vocab_size=VOCAB, hidden_size=48, num_hidden_layers=2)
MAMBA2 = dict(num_heads=12, head_dim=8, state_size=24, n_groups=3, chunk_size=8, expand=2)
BAMBA = dict(mamba_n_heads=12, mamba_d_head=8, mamba_d_state=24, mamba_n_groups=3, mamba_chunk_size=8, mamba_expand=2)
BAMBA |= dict(attn_layer_indices=[1], num_attention_heads=4, num_key_value_heads=2, intermediate_size=64)
MODELS = {
    "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**COMMON, state_size=16, time_step_rank=5)),
    "falcon_mamba": lambda: hf.FalconMambaForCausalLM(hf.FalconMambaConfig(**COMMON, state_size=16, time_step_rank=5)),
    "mamba2": lambda: hf.Mamba2ForCausalLM(hf.Mamba2Config(**COMMON, **MAMBA2)),
    "bamba": lambda: hf.BambaForCausalLM(hf.BambaConfig(**COMMON, **BAMBA)),
}
SCANS = {"mamba", "falcon_mamba"}  # whose prefill is ours, too


class Operators(TorchDispatchMode):
    """Counts our operators' calls."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "llamba":
            self.calls[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def make_model(family, dtype=torch.float32):
    torch.manual_seed(1)
    model = MODELS[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "A_log" not in name:
                parameter.normal_(std=0.1)
    return model.to(dtype)


@torch.no_grad()
def logits_of(model, tokens):
    """Of a prefill and of STEPS cached steps, which are given the tokens."""
    output, all_logits = None, []
    for begin, end in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, PROMPT + STEPS))]:
        cache = {}
        if output is not None:
            name = "cache_params" if hasattr(output, "cache_params") else "past_key_values"
            cache = {name: getattr(output, name)}
        output = model(tokens[:, begin:end], use_cache=True, **cache)
        all_logits.append(output.logits)
    return torch.cat(all_logits, 1)


@pytest.fixture(autouse=True)
def disabled_after():
    yield
    integration.disable()


@pytest.mark.parametrize("family", MODELS)
def test_logits(family):
    """fp32: close to those of the untouched model; bf16: no further from fp32's than twice the untouched model's."""
    tokens = torch.randint(VOCAB, (2, PROMPT + STEPS))
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model(family, dtype)
        untouched = logits_of(model, tokens)
        with integration.enable(family), Operators() as operators:
            ours = logits_of(model, tokens)
        layers = 1 if family == "bamba" else 2
        expected = {"selective_state_update": layers * STEPS, "causal_conv1d_update": layers * STEPS}
        assert operators.calls == expected | ({"selective_scan": layers} if family in SCANS else {})
        if dtype == torch.float32:
            torch.testing.assert_close(ours, untouched, rtol=1e-4, atol=1e-5)
        else:
            assert not torch.equal(ours, untouched)
            assert_close_to_ref(ours, logits_of(model.float(), tokens), untouched)
            model.to(dtype)
        with Operators() as operators:
            assert_bitwise(logits_of(model, tokens), untouched)
        assert not operators.calls


@pytest.mark.parametrize("family", MODELS)
def test_generate(family):
    """With a padded prompt in the batch, greedily: the same tokens."""
    model, tokens = make_model(family), torch.randint(1, VOCAB, (2, PROMPT))
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    options = dict(max_new_tokens=6, do_sample=False, attention_mask=mask, pad_token_id=0)
    untouched = model.generate(tokens, **options)
    with integration.enable(model), Operators() as operators:
        assert_bitwise(model.generate(tokens, **options), untouched)
    assert operators.calls["selective_state_update"] > 0


@pytest.mark.parametrize("family", MODELS)
def test_training_has_the_same_gradients(family):
    model, tokens = make_model(family).train(), torch.randint(VOCAB, (2, PROMPT))
    gradients = []
    for on in (False, True):
        model.zero_grad()
        with integration.enable(family) if on else torch.enable_grad():
            model(tokens, labels=tokens).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)


def functions():
    """What the modules' names are bound to."""
    bound = {}
    for family, names in integration.FAMILIES.items():
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        bound |= {(family, name): getattr(module, name) for name in names}
    return bound


def test_enabling_twice_and_disabling():
    theirs = functions()
    integration.disable()
    integration.enable("mamba")
    changed = {key for key, function in functions().items() if function is not theirs[key]}
    assert changed == {("mamba", name) for name in integration.FAMILIES["mamba"]}
    with integration.enable():
        ours = functions()
        assert all(ours[key] is not theirs[key] for key in theirs)
        with integration.enable():
            assert functions() == ours
        assert functions() == ours  # the inner one had enabled nothing
    assert {key for key, function in functions().items() if function is not theirs[key]} == changed
    integration.disable("mamba")
    integration.disable("mamba")
    assert functions() == theirs


def test_what_an_operator_does_not_do_stays_theirs():
    model, tokens = make_model("mamba").double(), torch.randint(VOCAB, (1, PROMPT + STEPS))
    expected = logits_of(model, tokens)
    with integration.enable(), Operators() as operators:
        assert_bitwise(logits_of(model, tokens), expected)
    assert not operators.calls
    model = hf.MambaForCausalLM(hf.MambaConfig(**COMMON, hidden_act="gelu")).eval()
    expected = logits_of(model, tokens)
    with integration.enable(), Operators() as operators:
        torch.testing.assert_close(logits_of(model, tokens), expected, rtol=1e-4, atol=1e-5)
    assert set(operators.calls) == {"selective_state_update", "selective_scan"}


def test_refusals(monkeypatch):
    families = "mamba, falcon_mamba, mamba2, bamba"
    sentence = f"integrations.transformers: models must be of {families}; got"
    assert_refused(ValueError, f"{sentence} 'zamba'", integration.enable, "zamba")
    other = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=0, num_attention_heads=1))
    assert_refused(ValueError, f"{sentence} llama", integration.enable, other)
    assert_refused(ValueError, f"{sentence} int", integration.disable, 3)
    theirs = functions()
    monkeypatch.setattr(hf.models.bamba.modeling_bamba, "causal_conv1d_update", lambda x, state: None)
    monkeypatch.setattr(hf, "__version__", "4.50.0")
    assert_refused(
        ValueError,
        "integrations.transformers: transformers must have causal_conv1d_update(hidden_states, conv_state, weight, "
        "bias, activation) in transformers.models.bamba.modeling_bamba, as version 5.23 has; got 4.50.0 with x, state",
        integration.enable,
    )
    monkeypatch.undo()
    assert functions() == theirs
