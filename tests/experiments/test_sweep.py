"""The sweep: every Trial gives one number, whoever computes it, and is computed once."""

import copy
import enum
import functools
import importlib
import itertools
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab import paths
from compresslab.experiments import executors, fingerprints
from compresslab.experiments import trial as trials
from compresslab.experiments.sweep import Trial
from compresslab.techniques import Control, Technique

pytestmark = pytest.mark.slow

GRID = {"sparsity": [0.5, 0.9], "criterion": ["magnitude", "random"]}


@pytest.fixture(scope="module")
def data():
    images = torch.rand(600, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return cl.data.from_tensors(images, (images.flatten(1).sum(1) > 8).long())


def small_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)).eval()


@pytest.fixture
def net():
    return small_net()


@pytest.fixture
def journal(tmp_path):
    return cl.journal.open(tmp_path / "journal.sqlite")


@pytest.fixture
def two_threads():
    with cl.train.threads(2):
        yield


@pytest.fixture
def fits(monkeypatch):
    """Counts the trainings."""
    calls, fit = [], cl.train.fit
    monkeypatch.setattr(cl.train, "fit", lambda *given, **named: calls.append(named) or fit(*given, **named))
    return calls


class OwnNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = small_net()

    def forward(self, images):
        return self.layers(images) if images.sum() > -1e9 else self.layers(-images)  # no tracing through this


def scale(model, factor=0.5, noise=False):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(factor + (torch.rand(()).item() if noise else 0))
    return model


def fail_or_scale(model, how="fine"):
    if how == "value":
        raise ValueError("how is value; give another")
    if how == "bug":
        return [][1]
    if how == "die":
        os._exit(3)
    return scale(model)


def images_mean(model, images, power=1):
    assert images.shape == (5, 1, 4, 4)
    return scale(model, images.mean().item() ** power)


class Pull(nn.Module):
    """A loss that pulls the logits to a value, which is how a training of one's own is seen."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, model, images, labels):
        assert len(images) == 6
        return (model(images) - self.value).square().mean()


def pulled(model, compressed, split, setting, seed):
    assert (model is not compressed, set(setting), seed) == (True, {"factor", "noise"}, 3)
    return split[:6], Pull(setting["factor"])


SCALE = Technique("scale", scale, (Control("factor", 0.25), Control("noise", False)))
FAILING = Technique("failing", fail_or_scale, (Control("how", "fine"),))


def numbers(results):
    return sorted((str(one.setting), one.seed, one.accuracy, one.file_bytes, one.nonzeros, one.key) for one in results)


def sweep(net, data, grid=None, technique="zero_pruning", **options):
    options = {"steps": 3, "journal": False, "bar": False} | options
    return list(cl.sweep.run(technique, net, data, GRID if grid is None else grid, **options))


def trial(**changes):
    return replace(Trial("zero_pruning", {"sparsity": 0.8}, steps=4), **changes)


def all_stages(one, net, data, journal=False):
    return list(cl.sweep.stages(one, net, data, journal))


# One Trial, stage by stage


def test_stages_come_in_order_and_measure_what_they_hand_over(net, data, journal):
    before, seen = copy.deepcopy(net.state_dict()), []
    for event in cl.sweep.stages(trial(), net, data, journal):
        seen.append(event.stage)
        if event.result is not None:
            assert event.result.stage == event.stage
            assert event.result.accuracy == cl.measure.accuracy(event.model, data.validation)
            assert event.result.file_bytes == len(cl.storage.dumps(event.model)) == cl.storage.file_bytes(event.model)
            assert event.result.nonzeros == cl.layers.count_nonzeros(event.model)
            assert event.result.parameters == cl.layers.count_parameters(net)
        assert (event.progress is not None) == (event.stage == "training")
    assert seen == ["compressed", "one-shot", *["training"] * 4, "retrained"]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    one_shot, retrained = journal.results()
    assert (one_shot.stage, one_shot.steps) == ("one-shot", 0)
    assert (retrained.stage, retrained.steps, retrained.data, retrained.model) == (
        "retrained",
        4,
        "custom",
        "Sequential",
    )
    assert 0 < one_shot.seconds < retrained.seconds and one_shot.created <= retrained.created
    assert {"torch", "compresslab", "python"} <= set(retrained.versions)


def test_the_number_is_that_of_the_plain_calls(net, data):
    *_, last = all_stages(trial(seed=3), net, data)
    with cl.train.threads(1):
        pruned = cl.zero_pruning.prune(net, sparsity=0.8)
        tuned = cl.train.finetune(pruned, data.train, steps=4, seed=3, bar=False)
    assert last.result.accuracy == cl.measure.accuracy(tuned, data.validation)
    assert cl.storage.dumps(tuned) == cl.storage.dumps(last.model)


@pytest.mark.parametrize("nothing", [{"steps": 0}, {"steps": None, "epochs": 0}])
def test_without_steps_it_ends_after_one_shot(net, data, fits, nothing):
    events = all_stages(trial(**nothing), net, data)
    assert [event.stage for event in events] == ["compressed", "one-shot"] and not fits
    (result,) = sweep(net, data, {"sparsity": [0.8]}, **nothing)
    assert result.stage == "one-shot" and result.key == events[-1].result.key


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_closing_cancels_and_leaves_nothing_behind(net, data, journal, two_threads, at):
    state, events = torch.get_rng_state(), cl.sweep.stages(trial(), net, data, journal)
    last = [next(events) for _ in range(at)][-1]
    events.close()
    assert torch.get_num_threads() == 2 and torch.equal(torch.get_rng_state(), state)
    assert [one.stage for one in journal.results()] == (["one-shot"] if at > 1 else [])
    assert not last.model.training and not last.model[1].training


def test_one_thread_inside_and_the_callers_number_outside(net, data, two_threads):
    inside = []
    spy = Technique("spy", lambda model: inside.append(torch.get_num_threads()) or scale(model), ())
    for _ in cl.sweep.stages(Trial(spy, steps=2), net, data, False):
        assert torch.get_num_threads() == 2
    assert inside == [1]


def test_a_seed_of_numpy(net, data):
    assert sweep(net, data, {}, SCALE, seed=np.int64(3))[0].key == sweep(net, data, {}, SCALE, seed=3)[0].key


def test_what_draws_from_the_global_generator_is_repeatable_and_leaves_it_alone(net, data):
    state = torch.get_rng_state()
    first, again, other = (all_stages(Trial(SCALE, {"noise": True}, 0, seed=seed), net, data) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [events[-1].model[1].weight for events in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_technique_that_takes_a_seed_gets_the_recipes(net, data):
    setting = {"sparsity": 0.5, "criterion": "random"}
    models = [all_stages(trial(setting=setting, seed=seed), net, data)[0].model for seed in (1, 1, 2)]
    masks = [cl.layers.get_mask(model[1]) for model in models]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_a_technique_with_calibration_gets_training_images(net, data):
    technique = Technique("images_mean", images_mean, (Control("power", 1),), calibration=5)
    events = all_stages(Trial(technique, steps=0), net, data)
    mean = data.train.images[:5].mean().item()
    assert torch.equal(events[0].model[1].weight, net[1].weight * mean)
    assert events[-1].result.setting == {"power": 1}


def test_a_technique_says_on_what_and_with_which_loss_its_model_is_trained(net, data):
    technique = replace(SCALE, training=pulled)
    events = all_stages(Trial(technique, {"factor": 5.0}, steps=300, seed=3, lr=0.05), net, data)
    assert cl.train.evaluate(events[-1].model, data.train.images[:6]).mean().item() == pytest.approx(5, abs=0.5)
    assert events[-1].result.stage == "retrained"


def test_how_it_is_trained_is_part_of_what_a_number_depends_on(net, data):
    plain, other = (all_stages(Trial(one, steps=0), net, data)[-1] for one in (SCALE, replace(SCALE, training=pulled)))
    assert plain.result.accuracy == other.result.accuracy
    assert plain.result.key != other.result.key


@pytest.mark.parametrize(
    ("apply", "got"), [(lambda model: model, "the model itself"), (lambda model: None, "a NoneType")]
)
def test_a_technique_that_returns_no_new_model(net, data, apply, got):
    with pytest.raises(ValueError, match=f"bad returned {got}; a technique returns a new"):
        all_stages(Trial(Technique("bad", apply, ())), net, data)


@pytest.mark.parametrize("length", [{"epochs": 1}, {"epochs": 0.3}, {"epochs": 2.5, "batch_size": 7}, {}])
def test_epochs_are_counted_as_fit_counts_them(net, data, length):
    expected = next(cl.train.fit(copy.deepcopy(net), data.train, bar=False, **length)).steps
    assert trials.check_trial(trial(steps=None, **length), data).steps == expected


@pytest.mark.parametrize("images", [1, 15, 700, 5000, 40_000])
def test_the_batch_size_is_fits_own(net, images):
    split = cl.data.Split(torch.zeros(images, 1, 4, 4), torch.zeros(images, dtype=torch.long))
    steps = next(cl.train.fit(copy.deepcopy(net), split, epochs=1, bar=False)).steps
    data = cl.data.Data("none", split, split, split, ("0",))
    assert trials.check_trial(trial(steps=None, epochs=1), data).steps == steps


def test_auto_precision_is_resolved_and_recorded(net, data):
    result = all_stages(trial(), net, data)[-1].result
    assert cl.train.Precision.named(result.precision) and result.precision != "auto"
    assert all_stages(trial(precision=result.precision), net, data)[-1].result.key == result.key
    assert all_stages(trial(precision="fp32"), net, data)[-1].result.precision == "fp32"


# Settings and keys


def test_defaults_and_spelling_do_not_change_a_setting():
    technique = cl.techniques.get("zero_pruning")
    full = trials.complete_setting(technique, {"sparsity": 0.9})
    assert full == {"sparsity": 0.9, "scope": "global", "criterion": "magnitude"}
    for same in (
        {"sparsity": np.float64(0.9), "scope": "global"},
        {"threshold": None, "criterion": "magnitude", "sparsity": 0.9},
        {"sparsity": torch.tensor(0.9, dtype=torch.float64), "layers": None},
    ):
        assert list(trials.complete_setting(technique, same).items()) == list(full.items())
    assert trials.complete_setting(technique, {"sparsity": 0.9, "layers": ("fc1",)})["layers"] == ["fc1"]


def test_the_functions_own_default_counts_before_the_sliders():
    assert trials.complete_setting(SCALE, {}) == {"factor": 0.5, "noise": False}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"sparsty": 0.9},
            "zero_pruning has no parameter 'sparsty'; it has sparsity, threshold, scope, crit",
        ),
        ({"model": 1}, "has no parameter 'model'"),
        ({"sparsity": 0.9, "threshold": 0.1}, r"sparsity=0.9 and threshold=0.1 exclude one another.*list of settings"),
        ({"sparsity": 0.9, "scope": "locl"}, "scope is 'locl'; choose one of 'global', 'layer'"),
        ({"sparsity": lambda: 1}, "sparsity is <function"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(net, data, fits, setting, message):
    with pytest.raises(ValueError, match=message):
        cl.sweep.run("zero_pruning", net, data, [{"sparsity": 0.5}, setting], steps=1)
    assert not fits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1, "epochs": 1}, "steps is 1 and epochs is 1; give one of the two"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"epochs": float("nan")}, "epochs is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": []}, "seed is .*at least one"),
        ({"seed": [0, "1"]}, "seed is '1'"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"lr": -1}, "lr is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"executor": 4}, "executor is 4; give None, an executor"),
        ({"grid": {"sparsity": []}}, "sparsity is .*at least one value"),
        ({"grid": []}, "grid is .*give a dict of lists, or a list"),
        ({"grid": "sparsity"}, "grid is 'sparsity'"),
        ({"grid": [0.5]}, "grid is"),
        ({"data": "mnst"}, "name is 'mnst'"),
        ({"data": None}, "data is a NoneType; give a whole data set"),
        ({"model": 3}, "model is 3; give a torch.nn.Module or the name"),
        ({"technique": "zero_prunning"}, "technique is 'zero_prunning'; choose one of"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused_at_the_call(net, data, options, message):
    given = {"technique": "zero_pruning", "model": net, "data": data, "grid": GRID} | options
    with pytest.raises(ValueError, match=message):
        cl.sweep.run(**given)


def test_a_grid_is_every_combination():
    settings = cl.sweep.settings({"a": np.array([1.0, 2.0]), "b": "text", "c": (None, True), "d": {"fc1": 3}})
    assert len(settings) == 4 and settings[0] == {"a": 1.0, "b": "text", "c": None, "d": {"fc1": 3}}
    assert cl.sweep.settings({}) == [{}]
    assert cl.sweep.settings(one for one in [{"a": 1}, {"b": 2}]) == [{"a": 1}, {"b": 2}]


def test_fingerprint_follows_what_the_model_does(net):
    first = fingerprints.of_model(net)
    assert fingerprints.of_model(copy.deepcopy(net).train()) == first
    assert fingerprints.of_model(cl.storage.loads(cl.storage.dumps(net))) == first
    pruned = cl.zero_pruning.prune(net, sparsity=0.5)
    again = cl.storage.loads(cl.storage.dumps(pruned, fold=False))
    assert fingerprints.of_model(again) == fingerprints.of_model(pruned)
    changed = [copy.deepcopy(net) for _ in range(4)]
    changed[0][1].weight.data[0, 0] += 1e-6
    changed[1][1].weight.requires_grad_(False)
    changed[2][2] = nn.Sigmoid()
    changed[3].insert(1, nn.Dropout(0.3))
    prints = [first, *map(fingerprints.of_model, [*changed, pruned, cl.layers.plain(pruned), OwnNet()])]
    assert len(set(prints)) == len(prints)


def digest(technique):
    return fingerprints.of_technique(technique)


HELPER = "FACTOR = 2\ndef factor():\n    return FACTOR\n"
SOURCE = """
import copy
from own_helper import factor
def apply(model):
    return copy.deepcopy(model), factor()
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """write(name=source, …) puts modules of one's own on the path, last changed long ago, and returns own_technique."""
    monkeypatch.syspath_prepend(tmp_path)
    names = ("own_helper", "own_technique")

    def write(age=1e6, **sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
            os.utime(tmp_path / f"{name}.py", (time.time() - age,) * 2)
        for name in names:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        return Technique("own", importlib.import_module("own_technique").apply, ())

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_an_edited_technique_is_measured_anew(modules):
    first = digest(modules(own_technique=SOURCE, own_helper=HELPER))
    assert not fingerprints.is_unnamed(first) and digest(modules(own_helper=HELPER)) == first
    others = [digest(modules(own_technique=SOURCE.replace("(model):", "(model, extra=3):")))]
    others += [digest(modules(own_technique=SOURCE, own_helper=HELPER.replace("= 2", "= 3")))]
    modules(own_helper=HELPER)
    sys.modules["own_helper"].FACTOR = 4
    others += [digest(Technique("own", sys.modules["own_technique"].apply, ()))]
    assert len({first, *others}) == 4


def test_a_module_that_was_edited_since_the_start_has_no_name(modules):
    technique = modules(own_technique=SOURCE, own_helper=HELPER)
    assert not fingerprints.is_unnamed(digest(technique))
    os.utime(sys.modules["own_helper"].__file__)
    assert fingerprints.is_unnamed(digest(technique))


def test_a_global_that_a_notebook_has_set_has_no_name(modules):
    technique = modules(own_technique=SOURCE, own_helper=HELPER)
    sys.modules["own_helper"].factor = in_a_notebook("def factor():\n    return 5\n")["factor"]
    assert fingerprints.is_unnamed(digest(technique))


def in_a_notebook(source):
    """The names that a notebook's cell defines: no file has its source."""
    names = {"__name__": "__main__", "nn": nn, "copy": copy, "small_net": small_net}
    exec(source, names)
    return names


NOTEBOOK = """
def act(images):
    return images.relu()
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = small_net()
    def forward(self, images):
        return act(self.layers(images))
def apply(model):
    return copy.deepcopy(model)
"""


def test_what_a_notebook_defines_is_never_stale(data, journal, fits, monkeypatch):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    names = in_a_notebook(NOTEBOOK)
    model, technique = names["Net"](), Technique("own", names["apply"], ())
    hooked = small_net()
    hooked[1].forward = lambda images: images[:, :12]
    for given, how in [(model, SCALE), (small_net(), technique), (ActsBy(names["act"]), SCALE), (hooked, SCALE)]:
        fits.clear()
        for _ in range(2):
            (result,) = sweep(given, data, {}, how, journal=journal, steps=1)
            assert 0 <= result.accuracy <= 1
        assert len(fits) == 2 and len(journal) == 0


def test_what_has_no_name_has_the_same_key_as_long_as_it_lives(net, data):
    technique = Technique("local", lambda model: scale(model), ())
    keys = {all_stages(Trial(technique, steps=0), net, data)[-1].result.key for _ in range(2)}
    other = Technique("local", lambda model: scale(model), ())
    assert len(keys) == 1 and all_stages(Trial(other, steps=0), net, data)[-1].result.key not in keys


@pytest.mark.filterwarnings("ignore:low_rank leaves alone")
def test_a_technique_that_was_used_is_the_same(net, data):
    chosen = [(name, cl.techniques.get(name)) for name in cl.techniques.names()]
    before = [digest(technique) for _, technique in chosen]
    for name, technique in chosen:
        setting = {one.name: one.default for one in technique.controls if not one.alternative}
        group = [one for one in technique.controls if one.alternative][:1]
        settings = setting | {one.name: 2 if one.name == "rank" else one.default for one in group}
        sweep(net, data, [settings], name, steps=1)
    assert [digest(technique) for _, technique in chosen] == before


def test_digests_are_the_same_in_every_process():
    script = """
from tests.experiments.test_sweep import SCALE, OwnNet, digest, everything, fingerprints
import compresslab as cl
told = [digest(cl.techniques.get(name)) for name in cl.techniques.names()]
print(digest(SCALE), *told, fingerprints.of_model(OwnNet()), fingerprints.of_model(everything()))
"""
    environment, here = os.environ | {"PYTHONHASHSEED": "1"}, paths.PACKAGE.parent
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=here)
    own = [digest(SCALE), *(digest(cl.techniques.get(name)) for name in cl.techniques.names())]
    own += [fingerprints.of_model(OwnNet()), fingerprints.of_model(everything())]
    assert run.stdout.split() == own, run.stderr


def test_names():
    assert [trials.name_of(cl.models.build(name)) for name in cl.models.names()] == cl.models.names()
    assert trials.name_of(cl.zero_pruning.prune(cl.models.lenet_300_100(0), sparsity=0.5)) == "lenet_300_100"
    assert trials.name_of(OwnNet()) == "OwnNet"


# A grid, and what has been measured before


def test_run_gives_each_setting_and_seed(net, data, journal):
    results = sweep(net, data, seed=[0, 1], journal=journal)
    assert len(results) == 8 and {one.stage for one in results} == {"retrained"}
    found = {(one.setting["sparsity"], one.setting["criterion"], one.seed) for one in results}
    assert found == set(itertools.product(*GRID.values(), (0, 1)))
    assert len(journal) == 16
    assert all(journal.find(one.key) == one for one in results)


def test_alternatives_come_as_a_list_of_settings(net, data):
    results = sweep(net, data, [{"sparsity": 0.5}, {"threshold": 0.05}])
    assert [sorted(one.setting) for one in results] == [
        ["criterion", "scope", name] for name in ("sparsity", "threshold")
    ]


def test_what_is_in_the_journal_is_not_computed_again(net, data, journal, fits):
    first = sweep(net, data, journal=journal)
    assert len(fits) == 4
    again = sweep(net, data, journal=cl.journal.open(journal.path))
    assert again == first and len(fits) == 4
    assert sweep(net, data, {"sparsity": [0.9]}, journal=str(journal.path))[0] in first and len(fits) == 4
    more = sweep(net, data, {"sparsity": [0.7, 0.9]}, journal=journal)
    assert len(fits) == 5 and more[0].setting["sparsity"] == 0.9, "what is known comes first"
    sweep(net, data, seed=1, journal=journal)
    assert len(fits) == 9


def test_the_journal_of_the_stages_serves_the_run(net, data, journal, fits):
    events = all_stages(trial(), net, data, journal)
    assert sweep(net, data, [{"sparsity": 0.8}], steps=4, journal=journal) == [events[-1].result] and len(fits) == 1


@pytest.mark.parametrize("journaled", [True, False])
def test_the_same_setting_twice_is_computed_once(net, data, journal, fits, journaled):
    grid = [{"sparsity": 0.9}, {"sparsity": np.float64(0.9), "scope": "global"}, {"sparsity": 0.9, "threshold": None}]
    results = sweep(net, data, grid, journal=journal if journaled else False)
    assert len(fits) == 1 and len(results) == 3 and results[0] == results[1] == results[2]


def test_the_default_journal(net, data, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSLAB_HOME", str(tmp_path / "home"))
    results = sweep(net, data, {"sparsity": [0.5]}, journal=None)
    assert cl.journal.open().results()[-1] == results[0]
    sweep(net, data, {"sparsity": [0.6]}, journal=False)
    assert len(cl.journal.open()) == 2


def test_names_of_model_and_data(net, data, monkeypatch):
    named = sweep(net, data, {"sparsity": [0.5]}, names={"model": "mine", "data": "tiny"})[0]
    assert (named.model, named.data) == ("mine", "tiny") and named.key == sweep(net, data, {"sparsity": [0.5]})[0].key
    monkeypatch.setattr(cl.data, "load", lambda name: data)
    monkeypatch.setattr(cl.models, "pretrained", lambda name, dataset: net)
    assert sweep("lenet_5", "mnist", {"sparsity": [0.5]})[0].model == "lenet_5"


def test_run_can_be_left_at_any_result(net, data, journal, fits):
    for _ in cl.sweep.run("zero_pruning", net, data, GRID, steps=2, journal=journal, bar=False):
        break
    assert len(fits) == 1 and len(journal) == 2


def test_the_bar_counts_all_results(net, data, journal, capsys):
    sweep(net, data, journal=journal, bar=True)
    assert "zero_pruning" in capsys.readouterr().err
    sweep(net, data, journal=journal, bar=True)
    assert "4/4" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["value", "bug"])
@pytest.mark.parametrize("threads", [0, 1])
def test_a_failure_names_the_setting_and_keeps_what_is_finished(net, data, journal, how, threads):
    kind = ValueError if how == "value" else RuntimeError
    executor = ThreadPoolExecutor(1) if threads else None
    with pytest.raises(kind, match=f"failing.how='{how}', seed=0.: ") as caught:
        sweep(net, data, {"how": ["fine", how, "never"]}, FAILING, executor=executor, journal=journal)
    assert "how is value" in str(caught.value) or "IndexError: list index" in str(caught.value)
    assert journal.results()[1].setting == {"how": "fine"}


# Others compute


@pytest.fixture(scope="module")
def expected(data):
    return numbers(sweep(small_net(), data))


def test_threads(net, data, expected, journal):
    with ThreadPoolExecutor(3) as executor:
        assert numbers(sweep(net, data, executor=executor, journal=journal)) == expected
    assert len(journal) == 8


def test_spawned_processes(net, data, expected, journal):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert numbers(sweep(net, data, executor=executor, journal=journal)) == expected
        assert len(journal) == 8
        own = sweep(OwnNet(), data, {"factor": [0.5, 2.0]}, SCALE, executor=executor)
        assert numbers(own) == numbers(sweep(OwnNet(), data, {"factor": [0.5, 2.0]}, SCALE))
        pruned = cl.zero_pruning.prune(net, sparsity=0.3)
        assert numbers(sweep(pruned, data, executor=executor)) == numbers(sweep(pruned, data))
        with pytest.raises(ValueError, match="failing.how='value', seed=0.: how is value"):
            sweep(net, data, {"how": ["fine", "value"]}, FAILING, executor=executor)
        with pytest.raises(RuntimeError, match="failing.how='die', seed=0.: BrokenP.*a worker process ended"):
            sweep(net, data, {"how": ["die"]}, FAILING, executor=executor)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_forked_processes_while_another_thread_computes(net, data, expected):
    stop = threading.Event()

    def compute():
        while not stop.is_set():
            all_stages(trial(), net, data)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as executor:
            assert numbers(sweep(net, data, executor=executor)) == expected
    finally:
        stop.set()
        thread.join()


def test_a_dask_cluster(net, data, expected, journal):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        assert numbers(sweep(net, data, executor=client.get_executor(), journal=journal)) == expected
        with pytest.raises(RuntimeError, match="failing.how='bug', seed=0.: IndexError"):
            sweep(net, data, {"how": ["bug"]}, FAILING, executor=client.get_executor())
        many = {"sparsity": np.linspace(0, 0.9, 9)}
        options = {"executor": client.get_executor(), "journal": journal, "bar": False}
        leaving = cl.sweep.run("zero_pruning", net, data, many, steps=2, **options)
        next(leaving)
        leaving.close()
    assert len(journal) >= 10


def test_leaving_early_cancels_what_has_not_begun(net, data, fits):
    with ThreadPoolExecutor(1) as executor:
        options = {"executor": executor, "journal": False, "bar": False}
        many = {"sparsity": np.linspace(0, 0.9, 40)}
        results = cl.sweep.run("zero_pruning", net, data, many, steps=20, **options)
        next(results)
        results.close()
    assert len(fits) < 30


class Recorder:
    """An executor that computes at once and remembers what it was given."""

    def __init__(self):
        self.given, self.open, self.most = [], 0, 0
        self.pool = ThreadPoolExecutor(1)

    def submit(self, function, *given):
        self.given.append(given)
        self.open += 1
        self.most = max(self.most, self.open)
        future = self.pool.submit(function, *given)
        future.add_done_callback(lambda _: setattr(self, "open", self.open - 1))
        return future


def test_data_go_by_name_only_where_the_worker_has_the_same(net, data, monkeypatch):
    named = cl.data.Data("mnist", data.train, data.validation, data.test, data.classes)
    monkeypatch.setattr(cl.data, "load", lambda name, folder=None: named)
    by_name = executors.pack(cl.techniques.get("zero_pruning"), net, named, {})
    assert executors.unpack(by_name)[2] is named
    other = cl.data.Data("mnist", data.train[:50], data.validation, data.test, data.classes)
    unpacked = executors.unpack(executors.pack(cl.techniques.get("zero_pruning"), net, other, {}))[2]
    assert torch.equal(unpacked.train.images, other.train.images) and unpacked.fingerprint == other.fingerprint
    assert torch.equal(unpacked.validation.labels, other.validation.labels)
    executors.unpack.cache_clear()
    monkeypatch.setattr(cl.data, "load", lambda name, folder=None: other)
    with pytest.raises(ValueError, match="data 'mnist' is not the same in a worker; .*COMPRESSLAB_DATA"):
        executors.unpack(by_name)


def test_not_too_much_travels_at_once(net, data, expected, monkeypatch):
    monkeypatch.setattr(executors, "IN_FLIGHT", 1)
    recorder = Recorder()
    results = sweep(net, data, {"sparsity": np.linspace(0, 0.9, 12)}, executor=recorder, steps=1)
    assert len(results) == len(recorder.given) == 12 and recorder.most <= 4


def test_models_travel_as_clab_files_or_else_pickled(net):
    assert executors._pack_model(net)[1] == "clab"
    content, kind = executors._pack_model(OwnNet())
    again = pickle.loads(content)
    assert kind == "pickle" and fingerprints.of_model(again) == fingerprints.of_model(OwnNet())


@pytest.mark.parametrize("by_value", [True, False])
def test_what_cannot_be_sent_is_named(net, data, monkeypatch, by_value):
    if not by_value:  # as where cloudpickle is not installed
        monkeypatch.setattr(executors, "pickler", executors.pickle)
    lock = threading.Lock()
    technique = Technique("local", lambda model: lock and scale(model), ())
    model = OwnNet()
    model.lock = lock
    sent = "technique 'local' cannot be sent to another process .*top of a module"
    for words, given in [(sent, (technique, net)), ("cannot be copied in attribute 'lock'", (SCALE, model))]:
        with pytest.raises(ValueError, match=words):
            sweep(given[1], data, {}, given[0], executor=Recorder(), steps=0, precision="fp32")


def test_a_worker_that_cannot_import_says_so(net, data):
    _, *rest = pickle.loads(executors.pack(SCALE, net, data, {}))
    lost = pickle.dumps((b"cno_such_module\nthing\n.", *rest))
    with pytest.raises(ValueError, match="a worker lacks what the sweep needs .*no_such_module"):
        executors._compute_remotely(cl.sweep.compute, trial(), lost)


def test_runs_side_by_side_in_threads_get_the_same_numbers(net, data, expected):
    found = []
    threads = [threading.Thread(target=lambda: found.append(numbers(sweep(net, data)))) for _ in range(3)]
    before = torch.get_float32_matmul_precision()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3 and torch.get_float32_matmul_precision() == before


def test_time_between_yields_is_not_counted(net, data):
    events, inside = cl.sweep.stages(trial(steps=0), net, data, False), 0.0
    for _ in range(2):
        time.sleep(0.2)
        start = time.perf_counter()
        event = next(events)
        inside += time.perf_counter() - start
    assert 0 < event.result.seconds < inside


class Scaled(nn.Module):
    """Its output depends on numbers that are neither parameters nor buffers."""

    def __init__(self, scale, offset=0.0):
        super().__init__()
        self.linear, self.scale, self.offset = nn.Linear(3, 2), scale, torch.tensor(offset)

    def forward(self, images):
        return self.linear(images) * self.scale + self.offset


@pytest.mark.parametrize(
    "make",
    [
        lambda other: Scaled(-1.0 if other else 1.0),
        lambda other: Scaled(1.0, 1.0 if other else 0.0),
        lambda other: nn.MultiheadAttention(8, 4 if other else 1),
    ],
    ids=["number", "tensor", "heads"],
)
def test_what_forward_reads_is_part_of_the_fingerprint(make):
    one, same, other = make(False), make(False), make(True)
    for model in (same, other):
        model.load_state_dict(one.state_dict())
    assert fingerprints.of_model(one) == fingerprints.of_model(same)
    assert fingerprints.of_model(one) != fingerprints.of_model(other)


class Mode(enum.Enum):
    ONE, TWO = 1, 2


@dataclass
class Config:
    slope: float = 1.0
    mode: Mode = Mode.ONE


class Holding(nn.Module):
    """A forward that reads what it was given."""

    scale = 2

    def __init__(self, thing=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(3, 2)
        self._thing = thing

    @functools.cached_property
    def half(self):
        return self.scale / 4

    def forward(self, images):
        return self.linear(images) * self.half


class Scaled4(Holding):
    scale = 4


class ActsBy(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layers, self.function = small_net(), function

    def forward(self, images):
        return self.function(self.layers(images))


def everything():
    """A model with one of each kind of thing that has words."""
    model = Holding(
        [{"a", "b", "cc"}, {"x": (1, 2.0)}, Config(), np.arange(3), torch.ones(2), torch.float16, torch.relu]
    )
    model.more = [functools.partial(nn.functional.leaky_relu, negative_slope=0.2), np.float32(3), small_net(), Mode.TWO]
    model.itself, model.lstm = (model,), nn.LSTM(2, 2)
    for weight in model.lstm.parameters():
        weight.data.fill_(0.5)
    return model


def hooked(hook):
    model = Holding()
    model.linear.register_forward_hook(hook)
    return model


def times(factor):
    return lambda images: images * factor


def partly(slope):
    return functools.partial(nn.functional.leaky_relu, negative_slope=slope)


@pytest.mark.parametrize(
    "one, other",
    [
        (Holding(1), Holding(2)),
        (Holding(1), Holding(1.0)),
        (Holding(), Scaled4()),
        (Holding(torch.relu), Holding(torch.sin)),
        (Holding(nn.functional.relu), Holding(nn.functional.silu)),
        (Holding(lambda images: images), Holding(lambda images: -images)),
        (Holding(times(1)), Holding(times(2))),
        (Holding(times(torch.ones(1))), Holding(times(torch.zeros(1)))),
        (Holding(partly(0.1)), Holding(partly(0.2))),
        (Holding(Config(1.0)), Holding(Config(9.0))),
        (Holding(Config()), Holding(Config(mode=Mode.TWO))),
        (Holding(np.float32(1)), Holding(np.float32(2))),
        (Holding(np.ones(3)), Holding(np.zeros(3))),
        (Holding([torch.ones(2)]), Holding([torch.zeros(2)])),
        (Holding({"a": {1}}), Holding({"a": {2}})),
        (Holding(torch.float32), Holding(torch.float64)),
        (Holding([nn.ReLU()]), Holding([nn.GELU()])),
        (Holding(threading.Lock()), Holding(threading.Lock())),
        (hooked(lambda *given: given[-1]), hooked(lambda *given: -given[-1])),
        (hooked(lambda *given: given[-1]), Holding()),
        (torch.fx.symbolic_trace(ActsBy(torch.relu)), torch.fx.symbolic_trace(ActsBy(torch.sin))),
    ],
)
def test_nothing_that_a_model_holds_is_overlooked(one, other):
    other.load_state_dict(one.state_dict())
    prints = fingerprints.of_model(one), fingerprints.of_model(other)
    assert len({*prints}) == 2 and fingerprints.of_model(one) == prints[0]


def test_models_of_a_file_are_told_apart_by_their_graphs():
    one, other = (cl.storage.loads(cl.storage.dumps(ActsBy(function))) for function in (torch.relu, torch.sin))
    again = cl.storage.loads(cl.storage.dumps(one))
    assert fingerprints.of_model(one) == fingerprints.of_model(again) != fingerprints.of_model(other)


def test_a_fingerprint_stays():
    """What Python and torch keep in a model that has run makes it no other model."""
    model = everything()
    first = fingerprints.of_model(model)
    assert first == fingerprints.of_model(copy.deepcopy(model)) == fingerprints.of_model(cl.layers.duplicate(model))
    assert first == fingerprints.of_model(pickle.loads(pickle.dumps(model)))
    model(torch.ones(1, 3)).sum().backward()
    model.compile()
    with torch.no_grad():
        handle = model.linear.register_forward_hook(cl.calibration._hook(print, []))
    assert first == fingerprints.of_model(model)
    handle.remove()


def test_the_cache_does_not_give_another_models_numbers(data, journal, fits):
    """Two models of one class with equal weights, which differ in a plain function."""
    results = [
        sweep(ActsBy(function), data, {"sparsity": [0.5]}, journal=journal) for function in (torch.relu, torch.sin)
    ]
    assert len(fits) == 2 and results[0][0].key != results[1][0].key


def test_state_that_is_not_tensors_gets_the_clear_error(data):
    class Extra(OwnNet):
        def get_extra_state(self):
            return 1

        def set_extra_state(self, state):
            pass

    with pytest.raises(ValueError, match="state"):
        sweep(Extra(), data, {"sparsity": [0.5]})


def test_a_file_that_is_written_while_images_are_evaluated_is_the_same(net, data, monkeypatch):
    """Evaluating switches the model's mode, of which the file tells."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    trial = Trial("zero_pruning", {"sparsity": 0.5}, steps=2)
    results = [event.result for event in cl.sweep.stages(trial, net, data, journal=False)]
    monkeypatch.setattr(cl.train, "may_share", lambda model: False)
    alone = [event.result for event in cl.sweep.stages(trial, net, data, journal=False)]
    assert numbers(filter(None, results)) == numbers(filter(None, alone))
