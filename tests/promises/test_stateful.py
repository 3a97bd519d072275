"""One store under builds, kills, appends, refusals and damage in any order holds what a plain forward pass gives."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from PIL import Image
from support import faults
from torchvision.transforms import functional as F

import xact
from xact.disk.locks import hold_lock
from xact.errors import MismatchError, StoreError, XactError
from xact.files.verify import verify
from xact.store.expected import ROOT
from xact.store.journal import load_state

MODELS = ("one", "two", "three")
STIMULI = ("a/p00", "a/p01", "a/p02", "b/p00", "b/p01")
LAYERS = {"0": 0, "2": 2, "5": 5}

CHANGES = {
    # what is set: the key that the refusal names
    "storage.codec=none": "storage.codec",
    "replicates.seed=3": "replicates.seed",
    "stimuli.border=0.1": "stimuli.border",
    "compute.batch_size=2": "models.one.batch_size",
    "reduce=mean": "models.one.layers",
    "models.0.seed=9": "seed differs",
    "stimuli.limit=1": "stimuli: 'a/p01'",
}

OF_MODEL = ("compute.batch_size=2", "reduce=mean", "models.0.seed=9")
"""Those of a model, which are refused once it has a value."""

Held = tuple[int, int]
"""How many models and stimuli, in the order of the lists above."""


def run_forward(stimuli: Path) -> dict[tuple[str, str, str], np.ndarray]:
    """Return {(model, stimulus, layer): units} of one picture at a time."""
    made: dict[str, object] = {}
    exec(faults.NETWORK, made)  # noqa: S102  the test's own network
    values = {}
    for seed, model in enumerate(MODELS):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = made["make"]().eval()
        for stimulus in STIMULI:
            picture = Image.open(stimuli / f"{stimulus}.png").convert("RGB").resize((16, 16))
            x = F.pil_to_tensor(picture)[None].float() / 255
            for i, module in enumerate(network):
                with torch.inference_mode():
                    x = module(x)
                if str(i) in LAYERS:
                    values[model, stimulus, str(i)] = x[0].flatten().numpy().copy()
    return values


class OneStore(RuleBasedStateMachine):
    """What is asked for only grows; `published` is what readers must see, or one of two where a kill came between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = self.folder / "out" / "store.zarr"
        self.published: set[Held | None] = {None}
        self.seen: dict[tuple[str, str], bytes] = {}
        self.damage: tuple[str, bytes, bytes] | None = None
        """Path of a damaged file, its true bytes, and those that it has."""

    @initialize(layout=st.sampled_from(["cube", "groups"]))
    def begin(self, layout: str) -> None:
        sys.modules.pop("tiny_network", None)
        self.layout = layout
        self.asked: Held = (1, 2)
        self.ask()
        self.true = run_forward(self.folder / "stimuli")

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def ask(self) -> None:
        n_models, n_stimuli = self.asked
        self.recipe = faults.write_case(self.folder, layout=self.layout, labels=MODELS[:n_models], limit=n_stimuli)

    def is_begun(self) -> bool:
        return any(self.store.glob(".xact/plan-*.json"))

    def read_files(self) -> dict[str, bytes]:
        """Return what lies in the store but the lock, whose files say no more than who held it last."""
        own = ("lock", "holder.json", "holder.json.partial")
        files = (file for file in self.store.rglob("*") if file.is_file() and file.name not in own)
        return {str(file.relative_to(self.store)): file.read_bytes() for file in files}

    @precondition(lambda self: self.asked[0] < len(MODELS))
    @rule()
    def add_a_model(self) -> None:
        self.asked = self.asked[0] + 1, self.asked[1]
        self.ask()

    @precondition(lambda self: self.asked[1] < len(STIMULI))
    @rule(n=st.integers(1, 2))
    def add_stimuli(self, n: int) -> None:
        self.asked = self.asked[0], min(len(STIMULI), self.asked[1] + n)
        self.ask()

    @rule()
    def build(self) -> None:
        """A build over damage is refused by name, or leaves it for verify, or writes what is right."""
        said = ""
        try:
            assert xact.build(self.recipe, allow_code=True).is_complete
            self.published = {self.asked}
        except StoreError as error:
            said = str(error)
        if said:
            assert self.damage is not None, said
            assert self.damage[0] in said or self.damage[0] == ROOT, said
        self.look_at_the_damage()

    @rule(point=st.integers(0, 150), when=st.sampled_from(["before", "middle", "after"]))
    def kill(self, point: int, when: str) -> None:
        code, _ = faults.run_child(self.folder, fault=faults.Fault(point, when, "KILL"))
        said = (self.folder / "stderr").read_text()
        if self.damage is not None and code == 1:
            assert self.damage[0] in said or self.damage[0] == ROOT, said
        else:
            assert code in (0, -9), said
            self.published = {self.asked} if code == 0 else {*self.published, self.asked}
        self.look_at_the_damage()

    def look_at_the_damage(self) -> None:
        """What is damaged is what verify names; a file that was written anew is damaged no more."""
        if self.damage is None:
            return
        key, _, bad = self.damage
        found = {fault.file for fault in verify(self.store).findings.faults}
        if not (self.store / key).is_file() or (self.store / key).read_bytes() != bad:
            assert found == set()
            self.damage = None
        elif key != "xact/zarr.json":  # what a generation under way writes there is known when it is published
            assert found == {key}

    @precondition(lambda self: self.damage is not None)
    @rule()
    def put_back(self) -> None:
        assert self.damage is not None
        key, good, _ = self.damage
        (self.store / key).write_bytes(good)
        self.damage = None

    @precondition(lambda self: self.is_begun() and self.damage is None)
    @rule(change=st.sampled_from(sorted(CHANGES)))
    def change_a_leaf(self, change: str) -> None:
        state = load_state(self.store)
        if change in OF_MODEL and state.plan is not None and "one" in state.find_empty_models(state.plan):
            return  # a model without a value may change
        files = self.read_files()
        with pytest.raises(MismatchError) as caught:
            xact.build(self.recipe, settings=[change], allow_code=True)
        assert CHANGES[change] in str(caught.value)
        assert self.read_files() == files

    @precondition(lambda self: self.store.exists())
    @rule()
    def build_beside_another(self) -> None:
        files = self.read_files()
        with hold_lock(self.store / ".xact"), pytest.raises(XactError, match="is being built by"):
            xact.build(self.recipe, allow_code=True)
        assert self.read_files() == files

    @precondition(lambda self: self.published == {self.asked} and self.damage is None)
    @rule(where=st.floats(0, 1, exclude_max=True), at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def damage_a_byte(self, where: float, at: float, bit: int) -> None:
        files = sorted(key for key, data in self.read_files().items() if data and not key.startswith(".xact/"))
        key = files[int(where * len(files))]
        old = (self.store / key).read_bytes()
        new = bytearray(old)
        new[int(at * len(old))] ^= 1 << bit
        (self.store / key).write_bytes(new)
        assert [fault.file for fault in verify(self.store).findings.faults] == [key]
        self.damage = key, old, bytes(new)

    @precondition(lambda self: self.is_begun() and self.damage is None)
    @rule()
    def verify_what_is_whole(self) -> None:
        assert verify(self.store).findings.faults == []

    @invariant()
    def readers_see_a_whole_store_or_none(self) -> None:
        if not hasattr(self, "true") or (self.damage is not None and self.damage[0] == ROOT):
            return
        try:
            acts = xact.open_activations(self.store).compute(scheduler="synchronous")
        except StoreError:
            assert None in self.published or self.damage is not None
            return
        models, stimuli = acts.model.values.tolist(), acts.stimulus.values.tolist()
        held = len(models), len(stimuli)
        assert held in self.published
        assert (tuple(models), tuple(stimuli)) == (MODELS[: held[0]], STIMULI[: held[1]])
        self.published = {held}
        for model in models:
            for stimulus in stimuli:
                found = acts.sel(model=model, stimulus=stimulus)
                bits = found.values.tobytes()
                assert self.seen.setdefault((model, stimulus), bits) == bits  # replicates and all, for ever
                for layer in LAYERS:
                    true = self.true[model, stimulus, layer]
                    ours = found.sel(layer=layer).values[0, : len(true)]
                    assert np.abs(ours - true).max() <= 1e-5 * np.abs(true).max()
                    assert np.isnan(found.sel(layer=layer).values[:, len(true) :]).all()


SETTINGS = settings(
    stateful_step_count=8,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_a_store_holds_what_it_must_whatever_is_done_to_it():
    faults.load_heavy()
    run_state_machine_as_test(OneStore, settings=settings(SETTINGS, max_examples=6))


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_a_store_holds_what_it_must_in_200_histories():
    faults.load_heavy()
    run_state_machine_as_test(OneStore, settings=settings(SETTINGS, max_examples=200, stateful_step_count=16))
