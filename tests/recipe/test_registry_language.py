"""The registry's language models: what they are said to be is what transformers makes of their configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from xact.building.survey import survey_model
from xact.recipe.registry.load import load_registry
from xact.recipe.resolve import resolve_model

REGISTRY = load_registry()
PANEL = REGISTRY.sets["panel-b-language"].models
FAST = {"bigscience/bloomz-560m", "openlm-research/open_llama_3b", "meta-llama/Llama-3.1-8B", "google/gemma-2-2b"}
"""One of each kind; the others take a minute together."""

GATED = {name for name in PANEL if name.split("/")[0] in ("meta-llama", "google")}


def test_the_panel_is_sixteen_models_of_which_six_are_gated():
    assert len(PANEL) == 16
    entries = [REGISTRY.entries[name] for name in PANEL]
    assert {entry.label for entry in entries if entry.is_gated} == GATED
    assert {(entry.source, entry.training, entry.label == entry.id) for entry in entries} == {
        ("transformers", "language", True)
    }


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PANEL]
)
def test_a_language_model_is_planned_without_a_hub_with_every_hidden_state_and_its_true_size(name):
    entry = REGISTRY.entries[name]
    planned = survey_model(resolve_model(name, folder=Path.cwd()), n_stimuli=3, stored=None, device="cpu")
    assert planned.n_parameters == entry.n_parameters
    assert [layer.label for layer in planned.layers] == [f"hidden.{i}" for i in range(entry.n_blocks + 1)]
    assert {(layer.n_units, layer.reduction) for layer in planned.layers} == {(entry.width, "mean")}
    assert [layer.depth for layer in planned.layers] == [i / entry.n_blocks for i in range(entry.n_blocks + 1)]
    assert (planned.kind, planned.dtype) == ("text", "float32")


@pytest.mark.parametrize("name", PANEL)
def test_every_key_of_a_configuration_is_one_that_its_class_has(name):
    config = REGISTRY.entries[name].config
    made = AutoConfig.for_model(**config).to_dict()
    assert {key: made[key] for key in config} == config


def test_the_rotary_settings_are_those_of_the_published_files_once_read():
    published = {
        "meta-llama/Meta-Llama-3-8B": {"rope_theta": 500000.0, "rope_scaling": None},
        "meta-llama/Llama-3.1-8B": {
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
    }
    for name, older in published.items():
        config = dict(REGISTRY.entries[name].config)
        said = config.pop("rope_parameters")
        assert AutoConfig.for_model(**config, **older).to_dict()["rope_parameters"] == said


PUBLISHED = {
    # name: (type, layers, width, heads, heads of keys and values, epsilon of the norms, words), as published
    "bigscience/bloomz-560m": ("bloom", 24, 1024, 16, None, 1e-5, 250880),
    "bigscience/bloomz-1b1": ("bloom", 24, 1536, 16, None, 1e-5, 250880),
    "bigscience/bloomz-1b7": ("bloom", 24, 2048, 16, None, 1e-5, 250880),
    "bigscience/bloomz-3b": ("bloom", 30, 2560, 32, None, 1e-5, 250880),
    "bigscience/bloomz-7b1": ("bloom", 30, 4096, 32, None, 1e-5, 250880),
    "openlm-research/open_llama_3b": ("llama", 26, 3200, 32, 32, 1e-6, 32000),
    "openlm-research/open_llama_7b": ("llama", 32, 4096, 32, 32, 1e-6, 32000),
    "openlm-research/open_llama_13b": ("llama", 40, 5120, 40, 40, 1e-6, 32000),
    "huggyllama/llama-7b": ("llama", 32, 4096, 32, 32, 1e-6, 32000),
    "huggyllama/llama-13b": ("llama", 40, 5120, 40, 40, 1e-6, 32000),
    "meta-llama/Meta-Llama-3-8B": ("llama", 32, 4096, 32, 8, 1e-5, 128256),
    "meta-llama/Llama-2-7b-hf": ("llama", 32, 4096, 32, 32, 1e-5, 32000),
    "meta-llama/Llama-2-13b-hf": ("llama", 40, 5120, 40, 40, 1e-5, 32000),
    "meta-llama/Llama-3.1-8B": ("llama", 32, 4096, 32, 8, 1e-5, 128256),
    "google/gemma-2-2b": ("gemma2", 26, 2304, 8, 4, 1e-6, 256000),
    "google/gemma-2-9b": ("gemma2", 42, 3584, 16, 8, 1e-6, 256000),
}
"""A number of heads or an epsilon leaves the number of parameters as it is and changes every value."""


@pytest.mark.parametrize("name", PANEL)
def test_heads_and_norms_are_those_of_the_published_models(name):
    kind, n_layers, width, n_heads, n_key_heads, epsilon, n_words = PUBLISHED[name]
    config = AutoConfig.for_model(**REGISTRY.entries[name].config)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == (kind, n_layers, width)
    assert (config.num_attention_heads, getattr(config, "num_key_value_heads", None)) == (n_heads, n_key_heads)
    assert (config.layer_norm_epsilon if kind == "bloom" else config.rms_norm_eps) == epsilon
    assert config.vocab_size == n_words


def test_the_weights_of_a_language_model_lie_under_its_own_name():
    assert set(PUBLISHED) == set(PANEL)
    for name in PANEL:
        place = REGISTRY.entries[name].weights
        assert (place.hub, place.file, place.revision) == (name, None, None)
