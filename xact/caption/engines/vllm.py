"""vLLM: the same networks, many pictures at a time, on a GPU. Optional: `pip install "xact[vllm]"`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xact.caption.engines.base import Answer, CaptionWeights, Settings, load_captioner_config, make_device_error
from xact.errors import RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

AUTO_BATCH = 64
"""vLLM schedules pictures by itself. A killed run loses at most this number of answers."""

LIBRARIES = ("torch", "vllm", "transformers", "pillow")

MAX_TOKENS = 8192
"""Most tokens of a prompt with its picture and its answer; a Pixtral picture takes at most 4,160. Without this limit,
vLLM reserves memory for the longest text that the network can read, a million tokens."""


def check(settings: Settings) -> None:
    """Refuse settings that vLLM does not support. Refuse all settings if vLLM is not installed."""
    if settings.device not in ("auto", "cuda"):
        raise make_device_error("vllm", settings.device, "auto or cuda; CUDA_VISIBLE_DEVICES chooses among several")
    if settings.dtype == "tf32":
        raise RequestError("the engine vllm does not support tf32", hint="compute.dtype: float32 or bfloat16")
    if importlib.util.find_spec("vllm") is None:
        raise RequestError(
            "the recipe asks for the engine vllm, but vllm is not installed",
            hint='on a machine with a GPU, pip install "xact[vllm]"; otherwise set caption.engine: transformers',
        )


def load_captioner(settings: Settings, weights: CaptionWeights) -> VllmCaptioner:
    """Return the network in a vLLM engine."""
    from vllm import LLM

    config = load_captioner_config(weights)
    longest = config.get("text_config", config).get("max_position_embeddings", MAX_TOKENS)
    llm = LLM(
        model=str(weights.folder),
        dtype=settings.dtype,
        seed=0,  # each request has its own seed
        max_model_len=min(longest, MAX_TOKENS),
        limit_mm_per_prompt={"image": 1},
    )
    return VllmCaptioner(settings, llm)


class VllmCaptioner:
    """A network in a vLLM engine."""

    def __init__(self, settings: Settings, llm: Any) -> None:  # noqa: ANN401  vllm is optional
        self._settings = settings
        self._llm = llm

    def answer(self, pictures: Sequence[Image], prompt: str, *, seed: int) -> list[Answer]:
        """Return one answer per picture. Answer i is sampled with `seed + i`."""
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
