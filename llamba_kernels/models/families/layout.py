"""How tensors are named elsewhere: substitutions in our own names, and tensors that are the rows of several of ours."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """renames: (ours, theirs) parts of a name, substituted one after the other. joined: (theirs, ours ...) parts: their
    tensor is the rows of ours, in this order.
    """

    renames: tuple[tuple[str, str], ...] = ()
    joined: tuple[tuple[str, ...], ...] = ()

    def rename(self, name: str) -> str:
        for ours, theirs in self.renames:
            name = name.replace(ours, theirs)
        return name


@dataclass(frozen=True)
class Rule:
    """Their tensor `theirs` is the rows of our parameters `ours`, one after the other; most often there is one."""

    theirs: str
    ours: tuple[str, ...]

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        parts = [shapes[name] for name in self.ours]
        return (sum(part[0] for part in parts), *parts[0][1:])


def rules(layout: Layout, parameters: Mapping[str, tuple[int, ...]]) -> list[Rule]:
    """One rule per tensor of theirs. parameters: our names; joined ones are looked for before anything is renamed."""
    found, done = [], set()
    for name in parameters:
        ours, theirs = (name,), name
        for joined, *parts in layout.joined:
            part = next((part for part in parts if part in name), None)
            if part is not None:
                ours, theirs = tuple(name.replace(part, each) for each in parts), name.replace(part, joined)
        if name not in done:
            found.append(Rule(layout.rename(theirs), ours))
        done |= set(ours)
    return found


# The names of state-spaces' own models, which transformers kept for Mamba, Mamba-2, Falcon-Mamba and Nemotron-H.
BACKBONE = (
    ("model.embed_tokens.", "backbone.embeddings."),
    ("model.layers.", "backbone.layers."),
    ("model.norm.", "backbone.norm_f."),
    (".input_layernorm.", ".norm."),
    (".mamba.", ".mixer."),
)
# What Jamba and Bamba call differently from Llama.
FEED_FORWARD = (
    ("model.norm.", "model.final_layernorm."),
    (".post_attention_layernorm.", ".pre_ff_layernorm."),
    (".mlp.", ".feed_forward."),
)
