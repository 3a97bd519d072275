"""`xact fetch` downloads weights and nothing else; `xact plan` says before what a build would miss."""

from __future__ import annotations

import hashlib
import json

import pytest
from support.cli import assert_one_line, run
from support.lab import make_entry, write_lab
from support.pictures import write_pictures
from support.servers import serve

from xact.models.sources import cornet

DATA = b"weights" * 1000


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_fetch_downloads_weights_once_and_nothing_else(empty_hub, tmp_path, monkeypatch, capsys):
    name = f"cornet_s-{hashlib.sha256(DATA).hexdigest()[:8]}.pth"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / name).write_bytes(DATA)
    with serve(tmp_path / "there") as files:
        monkeypatch.setattr(cornet, "URL", f"{files.url}/{name}")
        code, out, err = run(capsys, "fetch", "cornet:cornet_s")
        assert (code, err) == (0, "")
        assert out == f"cornet:cornet_s: {name}, 7.0 kB, fetched\n1 network: 1 fetched (7.0 kB), 0 were here\n"
        code, out, _ = run(capsys, "fetch", "cornet:cornet_s")
        assert out.endswith("1 network: 0 fetched (0 B), 1 were here\n")
        assert len(files.requests) == 1
    assert [file.name for file in empty_hub.iterdir()] == [name]


def test_all_that_cannot_be_fetched_is_in_one_error(empty_hub, monkeypatch, capsys):
    monkeypatch.setattr(cornet, "URL", "http://127.0.0.1:9/cornet_s-1d3f7974.pth")
    code, out, err = run(capsys, "fetch", "cornet:cornet_s", "timm:vit_tiny_patch16_224")
    assert (code, out) == (1, "")
    assert_one_line(err, "weights of 2 of 2 networks cannot be fetched", "cornet_s-1d3f7974.pth", "model.safetensors")


def test_plan_ends_with_what_a_build_would_miss(empty_hub, tmp_path, capsys):
    recipe = write_lab(tmp_path, make_entry(), "timm:vit_tiny_patch16_224", "torchvision:resnet18")
    code, out, _ = run(capsys, "plan", recipe, "--allow-code")
    assert code == 0
    before = out.partition("\nbefore you start:\n")[2]
    assert "  the weights of 2 models are not here, about 69.6 MB: timm:vit_tiny_patch16_224 (22.9 MB), " in before
    assert f"  xact fetch {recipe} downloads the weights and nothing else\n" in before
    assert not empty_hub.exists()


def test_plan_tells_grey_broken_and_changed_pictures_and_measures(tmp_path, capsys):
    recipe = write_lab(tmp_path, make_entry())
    assert run(capsys, "build", recipe, "--allow-code")[0] == 0
    changed = next((tmp_path / "stimuli" / "a").iterdir())
    write_pictures(tmp_path / "new", 1, seed=9, size=(24, 20))
    changed.write_bytes((tmp_path / "new" / "p00.png").read_bytes())
    _, out, _ = run(capsys, "plan", recipe, "--allow-code")
    assert f"1 stimulus of the store changed after the values were stored: a/{changed.stem}; a build refuses" in out
    write_pictures(tmp_path / "stimuli" / "a", 2, seed=3, size=(24, 20), mode="L")
    (tmp_path / "stimuli" / "b" / "p00.png").write_bytes(b"")
    colour = ["--set", "replicates.jitter={kind: color, saturation: 0.1, hue: 0.1}"]
    asked = ["plan", recipe, "--allow-code", "--store", tmp_path / "n.zarr", "--set", "on_error=skip", *colour]
    code, out, _ = run(capsys, *asked, "--measure")
    assert code == 0
    before = out.partition("\nbefore you start:\n")[2]
    assert "  1 of 7 pictures cannot be read: b/p00\n" in before
    assert "  2 of 6 pictures that were looked at are grey: a jitter of colours leaves their replicates equal" in before
    assert "  about 0:0" in before
    assert not (tmp_path / "n.zarr").exists()
    _, out, _ = run(capsys, *asked, "--json")
    assert json.loads(out)["before_start"]["grey"] == ["a/p00", "a/p01"]
