"""What an installed xact is to Python, to a type checker, and to a folder that has the name of the package."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import xact

ROOT = Path(xact.__file__).parents[1]

SCRIPT = """
from pathlib import Path

import numpy as np
import torch
import xact
from PIL import Image

def prepare(picture: Image.Image) -> torch.Tensor:
    return torch.zeros(3, 8, 8)

net = torch.nn.Conv2d(3, 4, 3)
xact.extract(net, Path("pics").glob("*.png"), transform=prepare, label="net")
xact.extract(lambda: net, [Image.new("RGB", (8, 8)), np.zeros((8, 8), np.uint8), "a.png"], transform=prepare)
xact.extract(torch.nn.Identity, "pics", transform={"resize": 8, "mean": [0, 0, 0], "std": [1, 1, 1]})
keys = {"store": "s.zarr", "stimuli": {"source": "folder"}, "models": ["ResNet50"]}
xact.build(keys)
xact.build(Path("recipe.yml"))
recipe = xact.Recipe(store="s.zarr", stimuli={"source": "folder"}, models=["ResNet50"])
reveal_type(recipe)
xact.build(recipe)
outcome = xact.build("recipe.yml", store="s.zarr", models=["ResNet50"], limit=8)
reveal_type(outcome.n_captured)
reveal_type(xact.extract("ResNet50", ["a.png"], layers=["layer1"]))
acts = xact.open_activations("s.zarr", models=["ResNet50"], layers="layer4*")
reveal_type(acts)
reveal_type(xact.open_layer("s.zarr", "ResNet50", "layer1"))
reveal_type(xact.open_map("s.zarr", "ResNet50", "layer1"))
reveal_type(xact.open_tokens("s.zarr", "gpt2", "hidden.1"))
reveal_type(xact.rdm("s.zarr"))
reveal_type(xact.load_stimuli("s.zarr"))
reveal_type(xact.load_layers("s.zarr"))
reveal_type(xact.load_provenance("s.zarr"))
reveal_type(xact.drop("s.zarr", models="VGG19").nbytes)
scores = xact.compare("s.zarr", to="it.h5", labels=["object"])
reveal_type(scores)
reveal_type(xact.open_rdms("it.h5"))
reveal_type(xact.label_rdm([0, 90, 350], period=360))
reveal_type(xact.to_rsatoolbox(xact.open_rdms("it.h5")))
reveal_type(xact.from_rsatoolbox(xact.to_rsatoolbox(xact.open_rdms("it.h5"))))
reveal_type(xact.report("s.zarr", labels=["object"]))
reveal_type(xact.plot.profile(scores))
old = xact.load_lazy_activations("a.h5")
reveal_type(old)
reveal_type(xact.load_model_activations_lazy("a.h5", "ResNet50"))
reveal_type(xact.get_available_models("a.h5"))
reveal_type(xact.get_available_images("a.h5", "ResNet50"))
reveal_type(xact.get_available_layers("a.h5", "ResNet50"))
reveal_type(xact.get_activation_shape("a.h5", "ResNet50"))
"""


def run(*command: str, folder: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with nothing on its path but what is installed."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"PYTHONPATH": path} if path else {}
    return subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_importing_xact_gives_no_warning(tmp_path):
    done = run("-W", "error", "-c", "import xact", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_clone_named_xact_below_the_working_folder_does_not_shadow_the_package(tmp_path):
    clone = tmp_path / "xact"
    (clone / "xact").mkdir(parents=True)
    (clone / "README.md").touch()
    done = run("-c", "import xact; print(xact.__version__, xact.__file__)", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    version, file = done.stdout.split(maxsplit=1)
    assert version == xact.__version__
    assert Path(file.strip()).parent != clone


@pytest.mark.slow
def test_a_type_checker_finds_the_type_of_every_public_name(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    cache = ROOT / ".mypy_cache"  # what the check of the package itself has read is not read again
    done = run("-m", "mypy", "--strict", "--cache-dir", str(cache), "script.py", folder=tmp_path)
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert done.returncode == 0, done.stdout
    assert [one for one in revealed if "Any" in one.split("[")[0]] == []
    named = set(re.findall(r"xact\.(\w+)", SCRIPT))
    assert named == set(xact.__all__)
    assert len(revealed) == len(xact.__all__)


PACKAGES = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "open_clip": "open-clip-torch",
    "distributed": "dask",
    "pydantic_core": "pydantic",
}
"""{module: its package}, where the names differ."""


def test_every_package_that_xact_imports_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = project["dependencies"] + [one for extra in project["optional-dependencies"].values() for one in extra]
    declared = {re.split(r"[^\w-]", text)[0].lower().replace("_", "-") for text in texts}
    for file in sorted((ROOT / "xact").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in {one.partition(".")[0] for one in names} - {"xact", *sys.stdlib_module_names}:
                package = PACKAGES.get(name, name.replace("_", "-"))
                assert package in declared, (str(file.relative_to(ROOT)), name)
