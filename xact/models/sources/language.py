"""Language models of transformers: `id` is a name on the hub, or a folder relative to the recipe file.

A model that predicts the next word is loaded with its head. An encoder is loaded as the class that its configuration
names. Attention is the plain formula (`eager`), because faster kernels skip parts of some models.
"""

from __future__ import annotations

import importlib.util
import inspect
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from xact.errors import RequestError, StimulusError, WeightsError
from xact.models.base import Network, Tokenizer, Weights
from xact.models.checkpoints import check_keys, hash_checkpoint
from xact.models.context import Tokenized, encode_in_context, make_spans
from xact.models.device import get_kind, resolve_device
from xact.models.hub import find_some_on_hub, is_cached
from xact.models.positions import count_positions
from xact.models.sources import transformers as shared
from xact.models.text_batch import Encoded, TextBatch
from xact.recipe.resolve import ModelSpec

library: Any = transformers  # the library types only a part of itself

TOKENIZER_NAMES = (
    *("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "tokenizer_config.json"),
)
"""Files of a tokenizer. The last name is downloaded last: if that file is cached, the others are cached too."""

ATTENTION = "eager"

NO_LIMIT = 10**9
"""A tokenizer that states more tokens than this has no limit."""

find_pretrained = shared.find_pretrained


def make_network(spec: ModelSpec) -> Network:
    """Return the untrained network as its class initialises it. Its weights, not its buffers, are in `spec.dtype`."""
    config = _load_config(spec)
    module = _make_untrained(choose_class(config, spec), config)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(find_dtype(spec))
    return _describe(module)


def _make_untrained(make: Any, config: Any) -> Any:  # noqa: ANN401  the library does not type its classes
    return make._from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)


def load_network(spec: ModelSpec, weights: Weights) -> Network:
    """Return the network with the tensors of its files, in `spec.dtype`."""
    config = _load_config(spec) if spec.weights != "pretrained" else shared.load_config(spec, shared.find_folder(spec))
    what = f"model {spec.label!r}: the weights in {weights.files[0].parent}"
    shared.refuse_code(weights)
    placing = _make_placing(spec)
    make = choose_class(config, spec)
    tensors, checkpoint = shared.find_tensors(spec, weights, lambda: _make_untrained(make, config))
    try:
        module, report = shared.call_loader(
            make,
            **tensors,
            **placing,
            config=config,
            dtype=find_dtype(spec),
            attn_implementation=ATTENTION,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{what} do not fit: {error}") from error
    prefix = f"{module.base_model_prefix}."
    has_head = any(key.startswith(prefix) for key in module.state_dict())
    unexpected = [key for key in report["unexpected_keys"] if not has_head or key.startswith(prefix)]
    check_keys([*report["missing_keys"], *map(str, report["mismatched_keys"])], unexpected, what)
    if not shared.is_on_meta() and any(parameter.is_meta for parameter in module.parameters()):
        raise WeightsError(
            f"model {spec.label!r} does not fit on the devices of this machine: a part of it would stay on disk",
            hint="more or larger devices, dtype: bfloat16, or quantize: nf4",
        )
    return replace(_describe(module, is_placed=bool(placing)), checkpoint=checkpoint)


def make_tokenizer(spec: ModelSpec) -> Tokenizer:
    """Return the tokenizer of the weights. It adds its default special tokens."""
    folder, record = _find_tokenizer(spec)
    try:
        with shared.be_quiet():
            tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        raise WeightsError(f"model {spec.label!r}: the tokenizer in {folder} cannot be used: {error}") from error
    config = _load_config(spec)
    stated = find_limit(spec, config, tokenizer.model_max_length)
    limit = find_limit(spec, config, tokenizer.model_max_length, _measure_positions(spec, config))
    lock = threading.Lock()  # a tokenizer stores the settings of its last call
    where = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    if (spec.context or spec.keeps_tokens) and not tokenizer.is_fast:
        raise RequestError(
            f"model {spec.label!r}: its tokenizer ({type(tokenizer).__name__}) does not tell where its tokens lie: "
            f"{'stimuli.context' if spec.context else 'reduce: tokens'} needs that",
            hint="a folder with a tokenizer.json",
        )

    def encode(text: str) -> Encoded:
        more = where if spec.keeps_tokens else {}
        with lock:
            found = tokenizer(text, verbose=False, **more)
            n_whole = len(found["input_ids"])
            is_cut = limit is not None and n_whole > limit
            if is_cut:
                found = tokenizer(text, truncation=True, max_length=limit, verbose=False, **more)
        ids = found["input_ids"]
        if not ids:
            raise StimulusError(f"the text {text!r} has no tokens")
        if not spec.keeps_tokens:
            return Encoded(ids, len(text.encode()), is_cut, n_whole=n_whole)
        inner = [i for i, is_special in enumerate(found["special_tokens_mask"]) if not is_special]
        spelled = range(inner[0], inner[-1] + 1) if inner else range(0)
        spans = make_spans(text, found["offset_mapping"][spelled.start : spelled.stop])
        return Encoded(ids, len(text.encode()), is_cut, n_whole=n_whole, spelled=spelled, spans=spans)

    pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    settings = {"class": type(tokenizer).__name__, "max_tokens": stated, "pad_id": pad_id, "padding": "right"}
    reductions = spec.reduce if isinstance(spec.reduce, list) else [spec.reduce]
    if "cls" in reductions and encode("a").ids[0] != tokenizer.cls_token_id:
        raise RequestError(f"model {spec.label!r}: its tokenizer puts no class token first", hint="reduce: mean")
    if not spec.context:
        return Tokenizer(encode, pad_id, record | settings, limit)

    def tokenize(text: str) -> Tokenized:
        with lock:
            found = tokenizer(text, verbose=False, **where)
        return Tokenized(found["input_ids"], found["offset_mapping"], found["special_tokens_mask"])

    def encode_after(before: Sequence[str], text: str) -> Encoded:
        return encode_in_context(tokenize, before, text, limit=limit, whole=spec.context == "sentences")

    return Tokenizer(encode, pad_id, record | settings, limit, encode_after)


def is_tokenizer_here(spec: ModelSpec) -> bool:
    """Return True if the tokenizer needs no download."""
    folders = _list_tokenizer_folders(spec)
    if any((folder / name).is_file() for folder in folders for name in TOKENIZER_NAMES):
        return True
    return not spec.is_folder and is_cached(
        spec.id, ("config.json", TOKENIZER_NAMES[-1]), label=spec.label, revision=spec.revision
    )


_MEASURED: dict[str, int | None] = {}
"""{class and configuration of a network: its positions}."""


def _measure_positions(spec: ModelSpec, config: Any) -> int | None:  # noqa: ANN401  the library does not type its classes
    """Return the most tokens that the network's table of positions takes, or None if none shows itself."""
    key = f"{choose_class(config, spec).__name__} {config.to_json_string(use_diff=False)}"
    if key not in _MEASURED:
        stated = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "sep", "cls")]
        special = {one for some in stated for one in (some if isinstance(some, list) else [some])}
        token = next(i for i in range(len(special) + 1) if i not in special)
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                network = make_network(spec)
        except (NotImplementedError, RuntimeError):  # code that depends on values cannot run on the meta device
            _MEASURED[key] = None
        else:
            network.module.to("meta").eval()
            _MEASURED[key] = count_positions(network, token=token)
    return _MEASURED[key]


def find_limit(
    spec: ModelSpec,
    config: Any,  # noqa: ANN401  the library does not type its classes
    model_max_length: int,
    n_positions: int | None = None,
) -> int | None:
    """Return the maximum number of tokens in a text: `max_tokens`, else the smaller limit of network and tokenizer.

    `n_positions` is what the network's table of positions takes, which its configuration may state too high.
    """
    stated = [getattr(config, "max_position_embeddings", None), model_max_length, n_positions]
    limits = [int(limit) for limit in stated if limit is not None and 0 < limit < NO_LIMIT]
    if spec.max_tokens is None:
        return min(limits, default=None)
    if limits and spec.max_tokens > min(limits):
        raise RequestError(
            f"model {spec.label!r}: max_tokens {spec.max_tokens} is more than the {min(limits)} that it can read"
        )
    return spec.max_tokens


def choose_class(config: Any, spec: ModelSpec) -> Any:  # noqa: ANN401  the library does not type its classes
    """Return the class of the network: the class that its configuration names, else the library's choice."""
    found = _find_class(config)
    if found is None:
        raise RequestError(
            f"model {spec.label!r}: {spec.id} ({config.model_type}) is not a network that takes text alone",
            hint="name a model that predicts the next word, or a text encoder; vision networks take pictures",
        )
    return found


def takes_text(spec: ModelSpec) -> bool:
    """Return True if the configuration belongs to a network that takes text alone."""
    return _find_class(_load_config(spec)) is not None


def _load_config(spec: ModelSpec) -> Any:  # noqa: ANN401  the library does not type its classes
    """Return the registry's configuration, else the configuration of the weights."""
    with shared.be_quiet():
        return shared.load_config(spec, None if spec.config is not None else shared.find_folder(spec))


def _find_class(config: Any) -> Any:  # noqa: ANN401  the library does not type its classes
    named = getattr(library, (config.architectures or [""])[0], None)
    if named is None:
        mapping = library.MODEL_FOR_CAUSAL_LM_MAPPING if _predicts(config) else library.MODEL_MAPPING
        named = mapping.get(type(config), None)
        named = named[0] if isinstance(named, tuple) else named
    is_text = isinstance(named, type) and getattr(named, "main_input_name", None) == "input_ids"
    has_more = getattr(config, "is_encoder_decoder", False) or getattr(config, "vision_config", None) is not None
    return named if is_text and not has_more else None


def find_dtype(spec: ModelSpec) -> torch.dtype:
    """Return the number format of the weights."""
    return torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32


def _find_tokenizer(spec: ModelSpec) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the tokenizer's files, and their hashes. Look beside local weights, then at `id`."""
    for folder in _list_tokenizer_folders(spec):
        files = {name: hash_checkpoint(folder / name) for name in TOKENIZER_NAMES if (folder / name).is_file()}
        if files:
            return folder, {"files": files}
    if spec.is_folder:
        raise WeightsError(
            f"model {spec.label!r}: there is no tokenizer in {spec.id_path}",
            hint=f"it needs some of {', '.join(TOKENIZER_NAMES)}",
        )
    folder = shared.find_folder(spec)
    found = find_some_on_hub(spec.id, TOKENIZER_NAMES, label=spec.label, revision=folder.name)
    return folder, {"files": {file.name: file.sha256 for file in found}}


def _list_tokenizer_folders(spec: ModelSpec) -> list[Path]:
    """Return the local folders that may hold the tokenizer: beside local weights, then `id`."""
    own = [] if spec.weights in ("pretrained", "random") else [Path(spec.weights)]
    return [*own, spec.id_path]


def _make_placing(spec: ModelSpec) -> dict[str, Any]:
    """Return the arguments with which the library itself quantizes the weights and puts them on devices."""
    placing: dict[str, Any] = {}
    if spec.quantize:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise RequestError(
                f"model {spec.label!r}: quantize: {spec.quantize} needs bitsandbytes, which is not installed",
                hint="pip install 'xact[nf4]'",
            )
        placing["quantization_config"] = library.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=spec.quantize, bnb_4bit_compute_dtype=find_dtype(spec)
        )
        placing["device_map"] = {"": resolve_device(spec.device)}
    if spec.device_map:
        placing["device_map"] = spec.device_map if get_kind(resolve_device(spec.device)) != "cpu" else {"": "cpu"}
    return placing


def _predicts(config: Any) -> bool:  # noqa: ANN401  the library does not type its classes
    """Return True if networks of this configuration see only earlier tokens, so that they can predict the next word."""
    reads_both_ways = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", False
    )
    return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not reads_both_ways


def _describe(module: Any, *, is_placed: bool = False) -> Network:  # noqa: ANN401  the library does not type its classes
    takes_cache = "use_cache" in inspect.signature(module.forward).parameters
    more = {"use_cache": False} if takes_cache else {}
    has_head = type(module).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() and _predicts(module.config)

    def forward(module: nn.Module, batch: TextBatch) -> object:
        return module(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True, **more)

    def find_logits(output: object) -> Tensor | None:
        return getattr(output, "logits", None) if has_head else None

    has_cls = not _predicts(module.config)
    return Network(module, forward, find_logits, None, has_cls, is_typed=True, is_placed=is_placed)
