"""A small network of one's own, and the recipes and stores that tests make with it in a fraction of a second."""

from __future__ import annotations

from pathlib import Path

from support.pictures import write_pictures, write_recipe

CODE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def forward(self, pictures):
        {check}
        return super().forward(pictures)

def make():
    return Net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.Flatten())
"""

MODEL = (
    "{{label: {label}, source: python, id: '{module}:make', weights: random, seed: {seed}, layers: ['0', '2'], "
    "reduce: mean, transform: {{resize: 16, mean: [0, 0, 0], std: [1, 1, 1]}}}}"
)

RECIPE = """
store: {store}
stimuli: {{source: folder, root: stimuli, folders: [a, b]}}
replicates: {{count: 2, jitter: {{kind: shift}}}}
models:
  - {models}
compute: {{device: cpu, batch_size: 4, workers: 1}}
storage: {{buffer_mb: 0.0004}}  # tasks of two stimuli
"""


def write_network(folder: Path, module: str, *, check: str = "pass") -> None:
    """Write the network as a module of a name of its own; `check` is run at the beginning of each forward."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(CODE.format(check=check))


def make_entry(label: str = "one", *, module: str = "labnet", seed: int = 0) -> str:
    """Return the entry of the network in a recipe."""
    return MODEL.format(label=label, module=module, seed=seed)


def write_lab(folder: Path, *models: str, store: str = "store.zarr", text: str = RECIPE) -> Path:
    """Write seven small pictures, the network and a recipe of it into `folder`; return the recipe's path."""
    write_pictures(folder / "stimuli" / "a", 4, seed=1, size=(24, 20))
    write_pictures(folder / "stimuli" / "b", 3, seed=2, size=(24, 20))
    write_network(folder, "labnet")
    models = models or (make_entry("one"), make_entry("two", seed=1))
    return write_recipe(folder, text.format(store=folder / store, models="\n  - ".join(models)))
