"""Models with a forward of their own come back without their class, as a graph of allowed calls, or say they cannot."""

import collections.abc
import contextlib
import copy
import operator
import pickle
import random
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import compresslab as cl
from compresslab.storage import calls, graph
from compresslab.storage.container import CorruptFileError

pytestmark = pytest.mark.slow


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.norm = nn.Linear(8, 6), nn.Linear(6, 3), nn.BatchNorm1d(6)

    def forward(self, x):
        x = functional.relu(self.norm(self.fc1(x.flatten(1))))
        x = functional.dropout(x, 0.5, training=self.training)
        return functional.log_softmax(self.fc2(x), dim=1)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.scale, self.offset = nn.Parameter(torch.full((1,), 0.5)), torch.tensor(0.25)

    def forward(self, x):
        return x + self.scale * self.layers(x) + self.offset


class Residual(nn.Module):
    """Nested modules of own classes, a hidden buffer, a tensor constant, an optional input, several outputs."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(2), Block(2)])
        self.blocks.append(self.blocks[0])
        self.register_buffer("hidden", torch.tensor([2.0, 3.0]), persistent=False)
        self.constant = torch.tensor([[1.0], [2.0]])
        self.head = nn.Linear(2, 3)

    def forward(self, x, mask=None):
        for block in self.blocks:
            x = block(x)
        if mask is not None:
            x = x * mask
        x = functional.adaptive_avg_pool2d(functional.max_pool2d(x, 2), 1).view(x.size(0), -1) * self.hidden
        y = torch.cat([self.head(x), x[:, :1]], dim=1)
        y += (x @ self.constant).mean()
        return y[..., 1:], {"rows": y.shape[0], "best": [y.argmax(1), y.max(dim=1).values]}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True), nn.Linear(10, 3)

    def forward(self, x):
        steps, (hidden, _) = self.lstm(x)
        return self.out(steps[:, -1]) + hidden.sum()


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.position = nn.Linear(8, 24), nn.Parameter(torch.ones(1, 3, 8))

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(x + self.position).reshape(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) / width**0.5, dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2)


def mixed():
    return nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (8, 1)), Net())


def results(model, batch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return copy.deepcopy(model)(batch)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a) if isinstance(a, dict) else a == b


MODELS = {
    "mlp": (Net, (5, 2, 4)),
    "residual": (Residual, (2, 2, 8, 8)),
    "recurrent": (Recurrent, (2, 3, 4)),
    "attention": (Attentive, (2, 3, 8)),
    "inside a Sequential": (mixed, (5, 4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_traced_model_comes_back_with_equal_outputs_in_both_modes(name):
    make, shape = MODELS[name]
    model, batch = make(), torch.randn(shape)
    blob = cl.storage.dumps(model)
    same = cl.storage.loads(blob)
    assert list(same.state_dict()) == list(model.state_dict())
    for training in (True, False):
        assert equal(results(same.train(training), batch), results(model.train(training), batch))
    assert blob == cl.storage.dumps(same.train()) == cl.storage.dumps(copy.deepcopy(model).train())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
def test_a_real_network_comes_back_without_torchvision(name):
    from torchvision import models

    model = getattr(models, name)(num_classes=10).half().eval()
    same = cl.storage.loads(cl.storage.dumps(model))
    batch = torch.randn(1, 3, 40, 40).half()
    with torch.no_grad():
        assert torch.equal(same(batch), model(batch))
    assert {type(one).__module__.split(".")[0] for one in same.modules()} == {"torch", "compresslab"}


def test_a_loaded_graph_trains_copies_and_travels():
    same = cl.storage.loads(cl.storage.dumps(Net()))
    batch = torch.randn(5, 8)
    same(batch).sum().backward()
    assert all(one.grad is not None for one in same.parameters())
    for twin in (copy.deepcopy(same), pickle.loads(pickle.dumps(same))):
        assert torch.equal(twin.eval()(x=batch), same.eval()(batch))
    with pytest.raises(TypeError, match=r"takes \(x\)"):
        same(batch, batch)


def test_saving_changes_neither_the_model_nor_the_random_state():
    model = Residual()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    attributes = set(vars(model))
    cl.storage.dumps(model)
    assert set(vars(model)) == attributes and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


class Branching(Net):
    def forward(self, x):
        return self.fc2(self.fc1(x)) if x.sum() > 0 else x


class Drawing(Net):
    def forward(self, x):
        return self.fc1(x) + torch.randn(6)


class Foreign(Net):
    def forward(self, x):
        return torch.linalg.svdvals(self.fc1(x))


class Remembering(Net):
    def forward(self, x):
        self.last = self.fc1(x)
        return functional.relu(self.last)


class Gated(Net):
    """Has what a forward may replace: a buffer, a tensor that is none, a number; and lists of parameters."""

    def __init__(self):
        super().__init__()
        assert isinstance(self.fc1, nn.Module)  # what a constructor asks is harmless
        self.register_buffer("seen", torch.zeros(1))
        self.calls, self.before, self.empty = 0, torch.zeros(8), []
        self.part, self.generator = Catching(), random.Random(0)
        self.gains = nn.ParameterList([nn.Parameter(torch.full((6,), 0.5))])
        self.shifts = nn.ParameterDict({"last": nn.Parameter(torch.full((6,), 0.25))})


def where_tensor(self, x):
    return self.fc1(x / 255 if isinstance(x, torch.Tensor) else x)


def where_is_tensor(self, x):
    return self.fc1(x / 255 if torch.is_tensor(x) else x)


def where_sequence(self, x):
    return self.fc1(x[0] if isinstance(x, collections.abc.Sequence) else x)


def where_type(self, x):
    return self.fc1(x / 255 if type(x) is torch.Tensor else x)


def where_shape(self, x):
    return self.fc1(x / 255 if isinstance(x.shape, tuple) else x)


def where_attribute(self, x):
    return self.fc1(x / 255 if hasattr(x, "decompose") else x)


def where_gradients(self, x):
    return self.fc1(x * 2 if torch.is_grad_enabled() else x)


def where_autocast(self, x):
    return self.fc1(x * 2 if torch.is_autocast_enabled("cpu") else x)


def where_chance(self, x):
    return self.fc1(x * 2 if torch.rand(1) < 0.5 else x)


def without_gradients(self, x):
    with torch.no_grad():
        y = self.fc1(x)
    return y + x.sum()


@torch.inference_mode()
def in_inference(self, x):
    return self.fc1(x)


def in_bfloat16(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.fc1(x)


def with_gradients_to_come(self, x):
    x.requires_grad = True
    return self.fc1(x)


def counting_in_a_buffer(self, x):
    self.seen = self.seen + 1
    return self.fc1(x) * self.seen


def counting(self, x):
    self.calls += 1
    return self.fc1(x)


def averaging(self, x):
    self.before = self.before * 0.9 + x
    return self.fc1(self.before)


def catching(self, x):
    try:
        x = x.reshape(len(x), 8)
    except RuntimeError:
        x = 2 * x.flatten(1)
    return self.fc1(x)


def catching_what_the_tracer_does_not_raise(self, x):
    try:
        x = x.view(x.shape[0], 8)
    except Exception as error:
        x = x.flatten(1)[:, :8] if error else x
    return self.fc1(x)


def suppressing(self, x):
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(TypeError, RuntimeError))
        x = x / len(x)
    return self.fc1(x)


@contextlib.contextmanager
def ignoring():
    try:
        yield
    except (TypeError, RuntimeError):
        pass


def in_a_manager(self, x):
    with ignoring():
        x = x / len(x)
    return self.fc1(x)


class Quiet:
    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        return kind is not None


def in_a_manager_of_a_class(self, x):
    with Quiet():
        x = x / len(x)
    return self.fc1(x)


def halved(x):
    try:
        return x / len(x)
    except RuntimeError:
        return x / 2


def in_a_helper(self, x):
    return self.fc1([halved(one) for one in (x,)][0])


class Catching(nn.Module):
    def forward(self, x):
        return halved(x)


def in_a_part(self, x):
    return self.fc1(self.part(x))


def leaving_by_finally(self, x):
    y = self.fc1(x)
    for _ in range(2):
        try:
            y = y * len(x)
        finally:
            break  # noqa: B012
    return y


def where_batch(self, x):
    return self.fc1(x) * (2 if len(x) > 1 else 1)


def where_python_draws(self, x):
    return self.fc1(x) * (2 if random.choice(range(1000)) == 7 else 1)


def where_a_generator_draws(self, x):
    return self.fc1(x) * (2.0 if self.generator.random() < 0.001 else 1.0)


def where_numpy_draws(self, x):
    return self.fc1(x) * (2.0 if np.random.rand() < 0.001 else 1.0)


def where_time(self, x):
    return self.fc1(x) * (2 if time.monotonic() < 0 else 1)


CALLS = {"now": 0}


def counting_in_a_global(self, x):
    CALLS["now"] += 1
    return self.fc1(x) * (2 if CALLS["now"] % 2 else 1)


def counting_in_an_empty_list(self, x):
    self.empty.append(1)
    return self.fc1(x) * (2 if len(self.empty) % 2 else 1)


def remembering_the_first(self, x):
    if not hasattr(self, "first"):
        self.first = x.mean()
    return self.fc1(x - self.first)


def kind(x):
    return 2 if type(x) is torch.Tensor else 1


def where_type_in_a_helper(self, x):
    return self.fc1(x) * kind(x)


LOST = [where_tensor, where_is_tensor, where_sequence, where_shape, where_gradients, where_autocast, where_chance]
LOST += [without_gradients, in_inference, in_bfloat16, with_gradients_to_come, counting_in_a_buffer, averaging]
LOST += [catching, suppressing, in_a_manager, in_a_manager_of_a_class, in_a_helper, in_a_part, leaving_by_finally]
LOST += [where_type, where_type_in_a_helper, catching_what_the_tracer_does_not_raise, where_python_draws]
LOST += [
    where_a_generator_draws,
    where_numpy_draws,
    where_time,
    where_batch,
    counting_in_a_global,
    counting_in_an_empty_list,
    remembering_the_first,
]


@pytest.mark.parametrize("forward", LOST, ids=lambda one: one.__name__)
def test_what_a_graph_would_lose_is_saved_as_tensors_only_and_said_so(forward, tmp_path):
    kind = type("Lossy", (Gated,), {"forward": forward})
    with pytest.warns(UserWarning, match=r"tensors only, to be loaded with load\(path, into=module\)"):
        cl.save(kind(), tmp_path / "lossy.clab")
    with pytest.raises(ValueError, match="tensors only"):
        cl.load(tmp_path / "lossy.clab")
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def listed_parameters(self, x):
    return self.fc1(x) * self.gains[0] + self.shifts["last"] + sum(one.sum() for one in self.gains)


def asking_of_a_list(self, x):
    parts = [self.fc1(x)]
    return torch.cat(parts, 1) if isinstance(parts, list) else parts


def changing_a_buffer_in_place(self, x):
    self.seen = self.seen.mul_(0.9).add_(x.mean())
    return self.fc1(x) * self.seen


def writing_before_reading(self, x):
    self.before, self.calls = self.fc1(x), x.shape[0]
    return self.before.relu() * self.calls


def in_full_precision(self, x):
    with torch.autocast("cpu", enabled=False):
        return self.fc1(x.float())


def cleaning_up(self, x):
    try:
        return self.fc1(x)
    finally:
        self.note = "done"


def raising_in_other_words(self, x):
    try:
        return self.fc1(x)
    except RuntimeError as error:
        raise ValueError("x is not of 8 features") from error


@contextlib.contextmanager
def counted(counts):
    try:
        yield
    finally:
        counts.clear()


def in_a_manager_that_lets_pass(self, x):
    with counted({}):
        return self.fc1(x)


def keeping_it(self, x):
    self.seen_last = self.fc1(x)
    return self.seen_last


KEPT = [listed_parameters, asking_of_a_list, changing_a_buffer_in_place, writing_before_reading, in_full_precision]
KEPT += [cleaning_up, raising_in_other_words, in_a_manager_that_lets_pass, keeping_it, counting, where_attribute]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("forward", KEPT, ids=lambda one: one.__name__)
def test_what_looks_like_it_and_is_not_lost_is_traced(forward, tmp_path):
    model, batch = type("Kept", (Gated,), {"forward": forward})(), torch.randn(3, 8)
    with torch.no_grad():  # what is switched outside does not matter
        cl.save(model, tmp_path / "kept.clab")
    same = cl.load(tmp_path / "kept.clab")
    for _ in range(2):
        assert torch.equal(same(batch), model(batch))
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("make", [Branching, Drawing, Foreign], ids=lambda one: one.__name__)
def test_what_cannot_be_traced_is_saved_as_tensors_only(make):
    model = make()
    blob = cl.storage.dumps(model)
    with pytest.raises(ValueError, match=r"tensors only.*into=module") as caught:
        cl.storage.loads(blob)
    assert not isinstance(caught.value, CorruptFileError)
    same = cl.storage.loads(blob, into=make())
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_forward_that_keeps_what_it_saw_can_be_traced():
    model, batch = Remembering(), torch.randn(3, 8)
    assert torch.equal(cl.storage.loads(cl.storage.dumps(model))(batch), model(batch))
    assert cl.storage.loads(cl.storage.dumps(model))(batch).shape == (3, 6)


class Keeping(Net):
    """Keeps what it saw in a list, a dict or an object; `read` says what of it the outputs depend on."""

    def __init__(self, keep, read):
        super().__init__()
        self.seen, self.keep, self.read = [], keep, read

    def forward(self, x):
        self.seen = self.keep(self.seen, self.fc2(functional.relu(self.fc1(x))))
        return self.read(self.seen)


def appended(seen, value):
    seen.append(value)
    return seen


def longer(seen, value):
    return [*seen, value]


@pytest.mark.parametrize("keep", [appended, longer])
def test_a_list_of_what_was_seen_is_no_part_of_the_function_unless_it_is_read(keep, tmp_path):
    batch = torch.ones(2, 8)
    model = Keeping(keep, lambda seen: seen[-1])
    model(batch)
    assert torch.equal(cl.storage.loads(cl.storage.dumps(model))(batch), model(batch))
    model = Keeping(keep, lambda seen: torch.stack(seen).mean(0))
    model(batch)
    with pytest.raises(ValueError, match="tensors only"):
        cl.storage.loads(cl.storage.dumps(model))
    with pytest.warns(UserWarning, match="tensors only.*earlier call"):
        cl.save(model, tmp_path / "n.clab")


def test_parts_in_different_modes_are_not_merged():
    model = Residual()
    model.blocks[0].eval()
    batch = torch.randn(2, 2, 8, 8)
    assert equal(results(cl.storage.loads(cl.storage.dumps(model)), batch), results(model, batch))  # no part asks
    model = nn.Sequential()
    model.add_module("net", Net())
    outer = Wrapper(model)
    model.net.eval()
    with pytest.raises(ValueError, match="tensors only"):
        cl.storage.loads(cl.storage.dumps(outer))


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_other_threads_use_models_while_one_is_traced():
    inside, outcomes = threading.Event(), []

    class Slow(Net):
        def forward(self, x):
            inside.set()
            worker.join(10)
            return self.fc1(x)

    def use():
        inside.wait(10)
        outcomes.append(cl.models.article_mlp(seed=0)(torch.zeros(2, 1, 28, 28)).shape)

    worker = threading.Thread(target=use)
    worker.start()
    model = Slow()
    same = cl.storage.loads(cl.storage.dumps(model))
    assert outcomes == [(2, 10)]
    assert torch.equal(same(torch.ones(1, 8)), model.fc1(torch.ones(1, 8)))


GOOD = {"inputs": ["x"], "steps": [["function", "operator.add", [{"node": 0}, 1]]], "output": {"node": 1}}


@pytest.mark.parametrize(
    "change",
    [
        {"steps": [["function", "os.system", [{"node": 0}]]]},
        {"steps": [["function", "attribute", [{"node": 0}]], ["method", "__class__", [{"node": 0}]]]},
        {"steps": [["method", "__reduce__", [{"node": 0}]]]},
        {"steps": [["function", "operator.add", [{"node": 1}, 1]]]},
        {"steps": [["function", "operator.add", [{"node": True}, 1]]]},
        {"steps": [["code", "print", []]]},
        {"steps": [["function", ["operator.add"], []]]},
        {"steps": [["function", "operator.add", {"node": 0}]]},
        {"steps": 7},
        {"inputs": ["x", "x"]},
        {"output": {"node": 2}},
        {"output": {"eval": "1"}},
        {"more": 1},
    ],
    ids=lambda one: str(one)[:60],
)
def test_a_graph_that_no_writer_makes_is_refused(change):
    assert graph.GraphModel({True: GOOD, False: GOOD})(torch.ones(2)).tolist() == [2, 2]
    with pytest.raises(CorruptFileError):
        graph.GraphModel({True: GOOD | change, False: GOOD})


def test_the_lists_of_calls_name_what_is_there():
    assert calls.FUNCTIONS["operator.add"] is operator.add and calls.FUNCTIONS["F.relu"] is functional.relu
    assert not any(name.startswith("_") for name in calls.METHODS - {"__getitem__"})
    assert all(hasattr(torch.Tensor, name) for name in calls.METHODS)
    assert calls.attribute(torch.ones(2, 3), "shape") == (2, 3)
    with pytest.raises(ValueError, match="__class__"):
        calls.attribute(torch.ones(1), "__class__")
