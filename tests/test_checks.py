"""How values, exceptions and models are worded and checked."""

import numpy as np
import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab import checks


@pytest.mark.parametrize(
    "value, message",
    [
        (0.5, "0.5"),
        ("magnitude", "'magnitude'"),
        (torch.zeros(1000, 1000), "Tensor of shape (1000, 1000)"),
        (np.zeros((3, 4)), "ndarray of shape (3, 4)"),
        ([nn.Linear(2, 2)], "[Linear]"),
        ({"weight": torch.zeros(3)}, "{'weight': Tensor of shape (3,)}"),
    ],
    ids=["number", "text", "tensor", "array", "list", "dict"],
)
def test_values_are_worded_without_their_contents(value, message):
    assert checks.words(value) == message


@pytest.mark.parametrize(
    "value",
    ["a" * 999, list(range(999)), {str(key): torch.zeros(9) for key in range(99)}, nn.Linear(9, 9).state_dict()],
    ids=["text", "list", "dict", "state dict"],
)
def test_long_values_are_cut(value):
    assert len(checks.words(value)) <= checks.LONGEST


def test_an_exception_is_worded_by_its_type_and_what_it_says():
    assert checks.reason(AssertionError()) == "AssertionError"
    assert checks.reason(IndexError("out\n of  range")) == "IndexError: out of range"
    assert len(checks.reason(ValueError(str(list(range(9999)))))) < 3 * checks.LONGEST


def test_a_value_that_cannot_be_compared_is_no_choice():
    with pytest.raises(ValueError, match=r"scope is ndarray of shape \(2,\); choose one of 'global'"):
        cl.zero_pruning.prune(nn.Linear(2, 2), 0.5, scope=np.zeros(2))


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))


IMAGES, LABELS = torch.rand(30, 1, 4, 4), torch.arange(30) % 3
PAIR, DATA = (IMAGES, LABELS), cl.data.from_tensors(IMAGES, LABELS)
HALF = cl.Recipe([("zero_pruning", {"sparsity": 0.5})])
TRIAL = cl.sweep.Trial("zero_pruning", {"sparsity": 0.5}, steps=0)
QUIET = {"journal": False, "bar": False}
LOOKING = {  # what looks into a model, by name
    "zero pruning": lambda model: cl.zero_pruning.prune(model, 0.5),
    "gradual": lambda model: cl.zero_pruning.gradual(model, DATA),
    "activation pruning": lambda model: cl.activation_pruning.prune(model, IMAGES, sparsity=0.5),
    "statistics": lambda model: cl.activation_pruning.statistics(model, IMAGES),
    "redundancy pruning": lambda model: cl.redundancy_pruning.prune(model, IMAGES),
    "similarities": lambda model: cl.redundancy_pruning.similarities(model, IMAGES),
    "low rank": lambda model: cl.low_rank.factorize(model, rank=1),
    "singular values": lambda model: cl.low_rank.singular_values(model),
    "quantization": lambda model: cl.quantization.quantize(model, bits=4),
    "weight sharing": lambda model: cl.weight_sharing.share(model),
    "student": lambda model: cl.distillation.distill(model, network(), PAIR),
    "teacher": lambda model: cl.distillation.distill(network(), model, PAIR),
    "student_of": lambda model: cl.distillation.student_of(model, IMAGES),
    "loss": lambda model: cl.distillation.loss(model),
    "fit": lambda model: cl.train.fit(model, PAIR),
    "finetune": lambda model: cl.train.finetune(model, PAIR),
    "sizes": lambda model: cl.measure.sizes(model),
    "macs": lambda model: cl.measure.macs(model, (1, 4, 4)),
    "measure": lambda model: cl.measure.measure(model, PAIR),
    "save": lambda model: cl.save(model, "never.clab"),
    "dumps": lambda model: cl.storage.dumps(model),
    "breakdown": lambda model: cl.storage.breakdown(model),
    "into": lambda model: cl.storage.loads(cl.storage.dumps(network()), into=model),
    "run": lambda model: cl.sweep.run("zero_pruning", model, DATA, {"sparsity": [0.5]}, **QUIET),
    "stages": lambda model: cl.sweep.stages(TRIAL, model, DATA, False),
    "recipe": lambda model: HALF.apply(model, DATA, **QUIET),
    "table": lambda model: HALF.table(model, DATA, **QUIET),
    "data type": lambda model: cl.decide.data_type(model, DATA, points=1, bar=False),
    "scan": lambda model: cl.allocation.scan(model, DATA, **QUIET),
    "apply": lambda model: cl.allocation.apply(model, {"1": 0.5}),
    "per layer": lambda model: cl.allocation.per_layer("zero_pruning", model),
    "sparsities": lambda model: cl.allocation.sparsities(model, 0.5),
    "lab": lambda model: cl.lab.explore("zero_pruning", model, DATA, threads=False),
}
RUNNING = {  # what only runs it, and lets wrappers pass, or lists what it holds
    "evaluate": lambda model: cl.train.evaluate(model, IMAGES),
    "accuracy": lambda model: cl.measure.accuracy(model, PAIR),
    "predictions": lambda model: cl.measure.predictions(model, IMAGES),
    "per class": lambda model: cl.measure.per_class(network(), PAIR, model or 0),
    "changes": lambda model: cl.measure.changed_predictions(network(), model, PAIR),
    "interval": lambda model: cl.measure.accuracy_interval(model, PAIR),
    "mcnemar": lambda model: cl.measure.mcnemar(network(), model, PAIR),
    "latency": lambda model: cl.measure.latency(model, shape=(1, 4, 4)),
    "compare": lambda model: cl.measure.compare_latency(model, network(), shape=(1, 4, 4)),
    "watch": lambda model: cl.calibration.watch(model, IMAGES, {}),
    "groups": lambda model: cl.channels.find_groups(model, IMAGES),
    "reset": lambda model: cl.channels.reset(model),
    "layers": lambda model: cl.layers.weight_layers(model),
    "weights": lambda model: cl.layers.distinct_weights(model),
    "unsupported": lambda model: cl.layers.unsupported(model),
    "plain": lambda model: cl.layers.plain(model),
    "state": lambda model: cl.layers.effective_state(model),
    "parameters": lambda model: cl.layers.count_parameters(model),
    "mask": lambda model: cl.layers.set_mask(model, torch.ones(2) > 0),
}
NO_MODELS = {
    "state dict": nn.Sequential(nn.Linear(999, 9)).state_dict(),
    "class": nn.Linear,
    "function": network,
    "list": [nn.Linear(2, 2)],
    "number": 3,
}


@pytest.mark.parametrize("value", NO_MODELS.values(), ids=NO_MODELS.keys())
@pytest.mark.parametrize("call", [*LOOKING.values(), *RUNNING.values()], ids=[*LOOKING, *RUNNING])
def test_what_is_no_model_is_refused_in_one_short_sentence(call, value):
    with pytest.raises(
        ValueError, match=r"(model|student|teacher|into|reference|module) is .*; give a torch.nn.Module"
    ) as caught:
        call(value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("call", LOOKING.values(), ids=LOOKING.keys())
def test_a_wrapped_model_is_refused_and_its_inside_named(call):
    compiled = torch.compile(network(), backend="eager")
    with pytest.raises(ValueError, match=r"is wrapped by DataParallel; pass the model itself: \w+.module"):
        call(nn.DataParallel(network()))
    with pytest.raises(ValueError, match=r"is wrapped by torch.compile; pass the model itself: \w+._orig_mod"):
        call(compiled)
    with pytest.raises(ValueError, match=r"\w+.1 is wrapped by torch.compile; pass the model itself: \w+.1._orig_mod"):
        call(nn.Sequential(nn.Identity(), compiled))


def test_a_state_dict_a_path_and_a_list_are_met_with_a_hint():
    for value, hint in (
        (network().state_dict(), "load it into its model"),
        (["a"], "Sequential"),
        ("a", "load it first"),
    ):
        with pytest.raises(ValueError, match=hint):
            cl.zero_pruning.prune(value, 0.5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_scripted_model_is_refused_where_it_would_be_copied():
    with pytest.raises(ValueError, match="'' is compiled by torch.jit; give the module"):
        cl.train.finetune(torch.jit.script(network()), PAIR)


def test_an_exception_that_cannot_say_what_it_is_is_worded_by_its_type():
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError

    assert checks.reason(Silent()) == "Silent"


def test_a_batch_that_the_model_does_not_take_is_refused_before_it_is_timed():
    class One(nn.Linear):
        def forward(self, images):
            assert len(images) == 1, "one at a time"
            return super().forward(images)

    with pytest.raises(ValueError, match=r"shape \(2, 4\): AssertionError: one at a time"):
        cl.measure.latency(One(4, 3), batch_size=2)


MISPLACED = {
    "layers": lambda value: cl.quantization.quantize(network(), layers=value),
    "technique": lambda value: cl.techniques.get(value),
    "grid": lambda value: cl.sweep.run("zero_pruning", network(), DATA, value, **QUIET),
    "steps": lambda value: cl.Recipe(value),
    "shares": lambda value: cl.allocation.apply(network(), value),
    "candidates": lambda value: cl.decide.data_type(network(), DATA, points=1, candidates=value),
    "hint": lambda value: cl.distillation.loss(network(), hint=value),
    "sparsity": lambda value: cl.zero_pruning.prune(network(), value),
    "shape": lambda value: cl.measure.latency(network(), shape=value),
    "mask": lambda value: cl.layers.set_mask(network()[1], value),
}


@pytest.mark.parametrize("call", MISPLACED.values(), ids=MISPLACED.keys())
def test_what_stands_in_the_wrong_place_is_not_dumped(call):
    for value in (torch.rand(40, 40), [torch.rand(99)] * 3, network().state_dict()):
        with pytest.raises((ValueError, TypeError)) as caught:
            call(value)
        assert len(str(caught.value)) < 300
