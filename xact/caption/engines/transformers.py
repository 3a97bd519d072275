"""Any image-text-to-text network of transformers, for example Pixtral."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers

from xact.caption.engines.base import Answer, CaptionWeights, Settings
from xact.errors import RequestError, WeightsError, WorkError
from xact.models.checkpoints import check_keys, load_state_dict
from xact.models.device import get_kind
from xact.models.precision import use_precision
from xact.models.sources.transformers import be_quiet

if TYPE_CHECKING:
    from PIL.Image import Image

library: Any = transformers  # its annotations are incomplete

AUTO_BATCH = 1
"""One picture per batch: in a larger batch an answer may differ in a word, mostly in low precision."""

LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "pillow", "numpy")


def check(settings: Settings) -> None:
    """Do nothing: every device and precision is supported."""


def load_captioner(settings: Settings, weights: CaptionWeights) -> TransformersCaptioner:
    """Return the network in eval mode; raise WeightsError if tensors are missing or unexpected."""
    what = f"model {settings.model!r}"
    for file in weights.files:
        if file.suffix != ".safetensors":
            load_state_dict(file)  # refuses a file that contains code
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        with be_quiet():
            processor = library.AutoProcessor.from_pretrained(weights.folder, **local)
            module, report = library.AutoModelForImageTextToText.from_pretrained(
                weights.folder, dtype=dtype, weights_only=True, output_loading_info=True, **local
            )
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{what}: transformers cannot open it as a network that answers about pictures: {error}",
            hint="caption.model is an image-text-to-text network, such as mistral-community/pixtral-12b",
        ) from error
    mismatched = [str(key) for key in report["mismatched_keys"]]
    check_keys([*report["missing_keys"], *mismatched], report["unexpected_keys"], f"{what}: the weights")
    if getattr(processor, "tokenizer", None) is None:
        raise RequestError(f"{what}: its processor {type(processor).__name__} has no tokenizer")
    return TransformersCaptioner(settings, processor, module)


class TransformersCaptioner:
    """A network of transformers and its processor."""

    def __init__(self, settings: Settings, processor: Any, module: Any) -> None:  # noqa: ANN401  see `library`
        self._settings = settings
        self._processor = processor
        self._module = module.eval().requires_grad_(False).to(settings.device)
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"  # an answer begins where its prompt ends
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._ends = _list_ends(module.generation_config.eos_token_id)

    def answer(self, pictures: Sequence[Image], prompt: str, *, seed: int) -> list[Answer]:
        """Return one answer per picture."""
        device = self._settings.device
        fork = [device] if get_kind(device) == "cuda" else []
        with torch.inference_mode(), use_precision(self._settings.dtype), torch.random.fork_rng(devices=fork):
            torch.manual_seed(seed)
            try:
                inputs = self._encode(pictures, prompt).to(device, dtype=self._module.dtype)
                tokens = self._module.generate(**inputs, **self._choose_decoding())
            except torch.OutOfMemoryError as error:
                raise WorkError(
                    f"model {self._settings.model!r}: {device} has no memory for {len(pictures)} pictures",
                    hint="set a smaller caption.batch_size, or compute.dtype: bfloat16; both need a new output",
                ) from error
            except (IndexError, RuntimeError, TypeError, ValueError) as error:
                raise WorkError(f"model {self._settings.model!r} failed on a picture: {error}") from error
        said = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.batch_decode(said, skip_special_tokens=True)
        is_cut = [said.shape[1] >= self._settings.max_new_tokens and not self._has_ended(row) for row in said]
        return [Answer(text, cut) for text, cut in zip(texts, is_cut, strict=True)]

    def _encode(self, pictures: Sequence[Image], prompt: str) -> Any:  # noqa: ANN401  see `library`
        """Return prompts and pictures as tensors, with the chat template; without a template, with an image token."""
        if self._processor.chat_template is None:
            text = "\n".join(filter(None, [prompt, getattr(self._processor, "image_token", None)]))
            return self._processor(
                text=[text] * len(pictures), images=[[one] for one in pictures], padding=True, return_tensors="pt"
            )
        ask = {"type": "text", "text": prompt}
        chats = [[{"role": "user", "content": [ask, {"type": "image", "image": one}]}] for one in pictures]
        return self._processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _choose_decoding(self) -> dict[str, Any]:
        """Return the options that override the network's own defaults of generation."""
        chosen = {
            "max_new_tokens": self._settings.max_new_tokens,
            "num_beams": 1,
            "pad_token_id": self._processor.tokenizer.pad_token_id,
        }
        if self._settings.temperature:
            return chosen | {"do_sample": True, "temperature": self._settings.temperature}
        return chosen | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}

    def _has_ended(self, said: torch.Tensor) -> bool:
        return any(token in self._ends for token in said.tolist())


def _list_ends(tokens: int | list[int] | None) -> set[int]:
    return set() if tokens is None else {tokens} if isinstance(tokens, int) else set(tokens)
