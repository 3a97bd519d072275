"""In which arithmetic networks run: IEEE float32 unless TF32 is asked for, and the process is left as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.lab import make_entry, write_lab, write_network

import xact
from xact.models import device
from xact.models.device import choose_batch_size, count_writers, guess_device
from xact.models.precision import use_precision

STRICT = ("highest", False, True, False)
FAST = ("high", True, True, False)

LOOK = """cudnn = torch.backends.cudnn
        switches = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
        if not pictures.is_meta:
            with open("{file}", "a") as file:
                print(switches, file=file)
"""
"""What the network of a test does in each forward pass."""


def read_switches() -> tuple[str, bool, bool, bool]:
    """Return (precision of products, TF32 in cuDNN, one algorithm of cuDNN, search for the fastest)."""
    cudnn = torch.backends.cudnn
    return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark


def set_switches(matmul: str, allow_tf32: bool, deterministic: bool, benchmark: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture(params=[("high", True, False, True), ("highest", False, True, False), ("medium", True, True, True)])
def before(request: pytest.FixtureRequest) -> Iterator[tuple[str, bool, bool, bool]]:
    """Switches that the process has before; its own come back afterwards."""
    own = read_switches()
    set_switches(*request.param)
    yield request.param
    set_switches(*own)


@pytest.mark.parametrize(("dtype", "inside"), [("float32", STRICT), ("bfloat16", STRICT), ("tf32", FAST)])
def test_tf32_is_on_only_where_it_is_asked_for_and_the_process_is_left_as_it_was(before, dtype, inside):
    with use_precision(dtype):
        assert read_switches() == inside
        assert torch.backends.cuda.matmul.allow_tf32 == (dtype == "tf32")
    assert read_switches() == before
    with pytest.raises(KeyError), use_precision(dtype):
        raise KeyError(dtype)
    assert read_switches() == before


@pytest.mark.parametrize(("dtype", "inside"), [("float32", STRICT), ("tf32", FAST)])
def test_every_forward_pass_of_a_build_runs_in_the_arithmetic_of_the_recipe(before, tmp_path: Path, dtype, inside):
    module = f"seen_{dtype}_{before[0]}"
    write_network(tmp_path, module, check=LOOK.format(file=tmp_path / "seen"))
    recipe = write_lab(tmp_path, make_entry(module=module))
    xact.build(recipe, settings=[f"compute.dtype={dtype}"], allow_code=True)
    lines = (tmp_path / "seen").read_text().splitlines()
    assert len(lines) >= 4  # tasks of two stimuli, seven stimuli
    assert set(lines) == {str(inside)}
    assert read_switches() == before


@pytest.mark.parametrize(
    ("device", "workers", "buffer_nbytes", "n"),
    [("cuda", 16, 1, 8), ("cuda:1", 4, 1, 2), ("mps", 1, 1, 1), ("cuda", 16, 10**18, 1), ("cpu", 16, 1, 1)],
)
def test_several_threads_write_for_an_accelerator_as_far_as_memory_and_processors_go(device, workers, buffer_nbytes, n):
    assert count_writers(workers, buffer_nbytes=buffer_nbytes, device=device) == n


@pytest.mark.parametrize(
    ("asked", "kind", "input_shape", "n"),
    [
        ("auto", "cpu", (3, 224, 224), 4),
        ("auto", "cpu", (3, 256, 256), 2),
        ("auto", "cpu", (3, 518, 518), 2),
        ("auto", "cpu", (3, 160, 160), 4),
        ("auto", "cpu", (3, 32, 32), 16),
        ("auto", "cpu", (77,), 16),  # a text
        ("auto", "cuda:1", (3, 224, 224), 64),
        (7, "cpu", (3, 224, 224), 7),
    ],
)
def test_a_batch_on_a_cpu_has_about_as_many_pixels_whatever_the_size_of_a_picture(asked, kind, input_shape, n):
    assert choose_batch_size(asked, kind, input_shape=input_shape) == n


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no files of GPUs")
def test_a_plan_asks_torch_what_auto_means_where_a_driver_is_loaded(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.append(1) or True)
    monkeypatch.setattr(device, "Path", lambda _: tmp_path)
    assert [guess_device(one) for one in ("auto", "cpu", "cuda:1")] == ["cpu", "cpu", "cuda:1"]
    assert not asked
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert (guess_device("auto"), asked) == ("cuda", [1])
