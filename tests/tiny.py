"""A random Llama of a few thousand parameters with a trained tokenizer and text: every stage runs on it in seconds."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB = 320
CONVERTED = [1, 2]  # layers


def write_teacher(folder: Path, layers: int = 4) -> Path:
    """A plain Llama folder: GQA, tied embeddings, a byte-level BPE tokenizer."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,  # the smallest state that the decoding kernels take
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.2,  # attention that does something, so that its absence shows
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [some_text(4000)], trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<end>"], initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>").save_pretrained(folder)
    return folder


def write_text(folder: Path) -> Path:
    """Three chunks: two to train on, one held out."""
    path = folder / "text.txt"
    path.write_text(some_text(150_000))
    return path


def some_text(length: int) -> str:
    words = ("the", "state", "of", "a", "mixer", "folds", "tokens", "into", "one", "matrix")
    generator = torch.Generator().manual_seed(length)
    picks = torch.randint(len(words), (length // 2,), generator=generator).tolist()
    return " ".join(words[i] for i in picks)[:length]
