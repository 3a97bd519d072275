"""vLLM: the same networks, many pictures at a time, on a GPU. An extra: `pip install "xact[vllm]"`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xact.caption.engines.base import Answer, CaptionWeights, Settings, load_captioner_config, make_device_error
from xact.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

AUTO_BATCH = 64
"""vLLM schedules pictures by itself; a kill loses this many answers at most."""

LIBRARIES = ("torch", "vllm", "transformers", "pillow")

MAX_TOKENS = 8192
"""Tokens of a prompt with its picture and its answer; a Pixtral picture takes 4,160 at most. Left to itself vLLM
reserves memory for the longest text that the network could read, a million tokens."""


def check(settings: Settings) -> None:
    """Refuse what vLLM has no switch for, and where it is not installed."""
    if settings.device not in ("auto", "cuda"):
        raise make_device_error("vllm", settings.device, "auto or cuda; CUDA_VISIBLE_DEVICES chooses among several")
    if settings.dtype == "tf32":
        raise RequestError("the engine vllm has no switch for tf32", hint="compute.dtype: float32 or bfloat16")
    if importlib.util.find_spec("vllm") is None:
        raise RequestError(
            "the engine vllm is asked for, and vllm is not installed",
            hint='pip install "xact[vllm]" where there is a GPU, or caption.engine: transformers',
        )


def load_captioner(settings: Settings, weights: CaptionWeights) -> VllmCaptioner:
    """Return the network in a vLLM engine."""
    from vllm import LLM

    config = load_captioner_config(weights)
    longest = config.get("text_config", config).get("max_position_embeddings", MAX_TOKENS)
    llm = LLM(
        model=str(weights.folder),
        dtype=settings.dtype,
        seed=0,  # each request brings its own
        max_model_len=min(longest, MAX_TOKENS),
        limit_mm_per_prompt={"image": 1},
    )
    return VllmCaptioner(settings, llm)


class VllmCaptioner:
    """A network in a vLLM engine."""

    def __init__(self, settings: Settings, llm: Any) -> None:  # noqa: ANN401  no types here
        self._settings = settings
        self._llm = llm

    def answer(self, pictures: Sequence[Image], prompt: str, *, seed: int) -> list[Answer]:
        """Return one answer a picture; the i-th is drawn from `seed + i`."""
        from vllm import SamplingParams

        ask = {"type": "text", "text": prompt}
        chats = [
            [{"role": "user", "content": [ask, {"type": "image_pil", "image_pil": picture}]}] for picture in pictures
        ]
        decoding = [
            SamplingParams(
                temperature=self._settings.temperature, max_tokens=self._settings.max_new_tokens, seed=seed + i
            )
            for i in range(len(pictures))
        ]
        said = [result.outputs[0] for result in self._llm.chat(chats, sampling_params=decoding, use_tqdm=False)]
        return [Answer(one.text, one.finish_reason == "length") for one in said]
