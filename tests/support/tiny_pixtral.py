"""A tiny Pixtral with random weights: the real classes of `mistral-community/pixtral-12b`, as a local folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
)

ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
MARKS = ["[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]

TEXTS = [
    "a photo of a cat and a dog on the green grass near some water",
    "describe this image in one sentence with motion or static things",
    "Motion. Static! Describe Answer",
    "answer with exactly one word indoor natural urban object scene dominated",
]

CHAT = (
    "{{ bos_token }}{% for message in messages %}[INST]{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}[IMG]{% endif %}{% endfor %}[/INST]{% endfor %}"
)
"""The form of Pixtral's own: text and pictures as they come, between [INST] and [/INST]."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that was trained on a few lines of lower-case letters."""
    tokenizer = Tokenizer(models.BPE(unk_token=ROLES["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=[*ROLES.values(), *MARKS], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=MARKS, **ROLES)


def write_pixtral(
    folder: Path, *, seed: int = 0, chat: str | None = CHAT, words: Mapping[str, float] | None = None, ends: bool = True
) -> Path:
    """Write a network whose answers depend on the picture, and its processor; return the folder.

    `words` are {word: bias}: what the network is apt to say first, and then to stop. With `ends` its last token is
    always the one that ends an answer.
    """
    tokenizer = make_tokenizer()
    pictures = PixtralImageProcessor(size={"longest_edge": 48}, patch_size={"height": 16, "width": 16})
    PixtralProcessor(
        image_processor=pictures, tokenizer=tokenizer, patch_size=16, spatial_merge_size=1, chat_template=chat
    ).save_pretrained(folder)
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=48
        ),
        text_config=MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        multimodal_projector_bias=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlavaForConditionalGeneration(config).eval()
        for parameter in network.parameters():  # the small initial values would say the same of every picture
            parameter.data.mul_(6 if parameter.ndim > 1 else 1)
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    if ends:
        network.generation_config.forced_eos_token_id = tokenizer.eos_token_id
    biases: dict[tuple[int, ...], float] = {}
    for word, bias in (words or {}).items():
        said = [*tokenizer(word, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        biases |= {tuple(said[: i + 1]): 500.0 if i else float(bias) for i in range(len(said))}
    if biases:
        network.generation_config.sequence_bias = [[list(said), bias] for said, bias in biases.items()]
    network.save_pretrained(folder)
    return folder
