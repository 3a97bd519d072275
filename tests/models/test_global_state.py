"""What a network leaves behind in the process is put back, told, and never reaches the next network."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from support.lab import make_entry, write_lab, write_network
from support.stores import load_values

import xact
from xact.errors import XactError
from xact.models.global_state import STATE, keep_global_state
from xact.models.precision import get_precision, set_precision, use_precision

CHANGES = {
    "torch's default dtype": "torch.set_default_dtype(torch.float64)",
    "torch's default device": "torch.set_default_device('meta')",
    "the hooks on all modules": "torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: None)",
    "the number of torch's threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "torch's deterministic flags": "torch.use_deterministic_algorithms(True, warn_only=True)",
    "the precision of matrix products": "torch.set_float32_matmul_precision('medium')",
    "the flags of cuDNN": "torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark",
    "the kernels of attention": "torch.backends.cuda.enable_flash_sdp(False)",
    "autocast": "torch.autocast('cpu', torch.bfloat16).__enter__()",
    "grad mode": "torch.set_grad_enabled(False)",
    "torch's random generator": "torch.rand(1)",
    "numpy's random generator": "np.random.seed(3)",
    "the generator of `random`": "random.random()",
}


def test_every_part_of_the_state_has_a_case():
    assert CHANGES.keys() == STATE.keys()


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("fails", [False, True])
def test_each_part_is_put_back_and_told_by_name_also_after_an_error(name, fails):
    before = {part: get() for part, (get, _) in STATE.items()}
    told = []
    try:
        with keep_global_state("net", told.append):
            exec(CHANGES[name], {"torch": torch, "np": np, "random": random})  # noqa: S102
            if fails:
                raise KeyError(name)
    except KeyError:
        assert fails
    assert told == [f"net: its code changed {name} for the whole process; it was put back after the model"]
    assert {part: get() for part, (get, _) in STATE.items()} == before


PRECISIONS = [
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.mkldnn.conv.fp32_precision = 'bf16'",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
]


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch has one precision for all backends")
@pytest.mark.parametrize("code", PRECISIONS)
def test_a_precision_of_one_backend_is_put_back_and_a_network_runs_in_float32_all_the_same(code):
    before, told, seen = get_precision(), [], []
    try:
        with keep_global_state("net", told.append):
            exec(code, {"torch": torch})  # noqa: S102
            changed = get_precision()
            with keep_global_state("inner", told.append):
                with use_precision("float32"):
                    seen.append(torch.backends.mkldnn.conv.fp32_precision)
                    assert torch.get_float32_matmul_precision() == "highest"
                assert get_precision() == changed
    finally:
        after = get_precision()
        set_precision(before)
    assert len(told) == 1
    assert "net: its code changed the precision of matrix products" in told[0]
    assert not {"bf16", "tf32"} & set(seen)
    assert after == before


LEAVES = [
    "torch.set_default_dtype(torch.float64)",
    "torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: o * 2 if isinstance(m, nn.ReLU) else None)",
]


@pytest.mark.parametrize("code", LEAVES)
@pytest.mark.parametrize("fails", [False, True])
def test_a_network_has_the_same_values_alone_and_after_one_that_changes_the_process(tmp_path, code, fails):
    name = f"leaves_{LEAVES.index(code)}_{fails}"
    write_network(tmp_path, name)
    file = tmp_path / f"{name}.py"
    error = "raise ValueError('no weights')" if fails else "pass"
    is_real = "not torch.empty(0).is_meta"
    make = f"def make():\n    if {is_real}:\n        {code}\n        {error}\n    return"
    file.write_text(file.read_text().replace("def make():\n    return", make))
    alone = write_lab(tmp_path, make_entry("two", seed=1), store="alone.zarr")
    xact.build(alone, allow_code=True)
    both = write_lab(tmp_path, make_entry("one", module=name), make_entry("two", seed=1))
    if fails:
        with pytest.raises(XactError, match="no weights"):
            xact.build(both, allow_code=True)
        xact.build(write_lab(tmp_path, make_entry("two", seed=1)), allow_code=True)
    else:
        outcome = xact.build(both, allow_code=True)
        assert any("one: its code changed " in warning for warning in outcome.warnings)
    found = xact.open_activations(tmp_path / "store.zarr", models=["two"]).values
    assert np.array_equal(found, xact.open_activations(tmp_path / "alone.zarr").values, equal_nan=True)


def test_a_network_of_a_library_leaves_nothing_behind(tmp_path):
    entry = "{label: tiny, source: timm, id: test_vit.r160_in1k, weights: random, layers: ['blocks.*'], reduce: cls}"
    outcome = xact.build(write_lab(tmp_path, entry))
    assert outcome.warnings == []
    assert load_values(tmp_path / "store.zarr") is not None
