"""Small language models of the real classes, with a real tokenizer, as folders that transformers wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CAPTIONS = [
    "A dog runs over the green grass.",
    "Two people",
    "A man in a red coat rides a brown horse along the beach while the sun goes down behind the hills.",
    "Snow.",
    "A plate with rice, beans and a fork.",
    "The café at the corner – naïve crème brûlée, 3 €",
    "A kitchen",
    "Some birds sit on a wire over a busy street in the middle of the town, and one of them looks at the camera.",
    "A cat sleeps on a chair.",
    "An empty room with a window",
]

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def make_tokenizer(*, has_pad: bool = True, is_bert: bool = False, side: str = "left", **settings: object):
    """Train a byte-level BPE on a few sentences; it begins a text with <s>, BERT's ends it too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = ["<pad>", "<s>", "</s>", "<unk>", "[CLS]", "[SEP]"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=words, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    template = ("[CLS] $A [SEP]", [("[CLS]", 4), ("[SEP]", 5)]) if is_bert else ("<s> $A", [("<s>", 1)])
    tokenizer.post_processor = processors.TemplateProcessing(single=template[0], special_tokens=template[1])
    more = {"pad_token": "<pad>"} if has_pad else {}
    more |= {"cls_token": "[CLS]", "sep_token": "[SEP]"} if is_bert else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=side, **SPECIAL, **more, **settings)


N_WORDS = 400

NETWORKS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=N_WORDS,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
        )
    ),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=N_WORDS,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=128,
            sliding_window=16,
            initializer_range=0.2,
        )
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=N_WORDS, hidden_size=32, n_layer=2, n_head=4)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=N_WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=128)),
    "bert": lambda: BertModel(
        BertConfig(vocab_size=N_WORDS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    ),
}
"""Networks by their kind: rotary, soft-capped with windows, ALiBi, learned positions, an encoder."""


def write_model(folder: Path, kind: str, **tokenizer: object) -> Path:
    """Write a random network and its tokenizer into `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        NETWORKS[kind]().save_pretrained(folder)
    make_tokenizer(is_bert=kind == "bert", **tokenizer).save_pretrained(folder)
    return folder
