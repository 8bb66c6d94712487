"""The training loop and the evaluation."""

import copy
import os
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import compresslab as cl
from compresslab import train


@pytest.fixture
def blobs():
    """A small problem that a linear model solves: 400 points of 8 numbers, 3 classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 3
    centres = torch.randn(3, 8, generator=generator) * 3
    return centres[labels] + torch.randn(400, 8, generator=generator), labels


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def fit(model, data, **settings):
    return list(train.fit(model, data, precision="fp32", **settings))


def test_fit_learns_in_place(net, blobs):
    fit(net, blobs, epochs=10)
    assert train.accuracy_of(train.evaluate(net, blobs), blobs[1]) > 0.95


def test_one_step_is_a_step_of_adam(blobs):
    model = nn.Linear(8, 3)
    oracle = copy.deepcopy(model)
    fit(model, blobs, steps=1, lr=0.01, batch_size=400)
    optimizer = torch.optim.Adam(oracle.parameters(), lr=0.01)
    functional.cross_entropy(oracle(blobs[0]), blobs[1]).backward()
    optimizer.step()
    assert torch.allclose(weights(model), weights(oracle), atol=1e-6)


def test_same_seed_same_model_to_the_bit(net, blobs):
    first, second, other = (train.finetune(net, blobs, epochs=2, seed=seed, precision="fp32") for seed in (1, 1, 2))
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


def test_the_global_generator_neither_decides_nor_changes(net, blobs):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = train.finetune(net, blobs, epochs=1, precision="fp32")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(weights(train.finetune(net, blobs, epochs=1, precision="fp32")), weights(first))


class Dropping(nn.Module):
    """Dropout that no module shows."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, images):
        return self.linear(functional.dropout(images, 0.5, self.training))


@pytest.mark.parametrize("loaded", [False, True], ids=["own class", "loaded without it"])
def test_dropout_in_forward_is_seeded_too(blobs, loaded):
    model = cl.storage.loads(cl.storage.dumps(Dropping())) if loaded else Dropping()
    before = torch.get_rng_state()
    one, two = (train.finetune(model, blobs, steps=5, precision="fp32") for _ in range(2))
    assert torch.equal(weights(one), weights(two))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_pruned_by_torch_trains_on_with_its_zeros(net, blobs):
    torch.nn.utils.prune.l1_unstructured(net[0], "weight", 0.4)
    zero = net[0].weight == 0
    tuned = train.finetune(net, blobs, steps=5)
    assert zero.any() and (tuned[0].weight[zero] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_type_train_in_it(blobs, dtype):
    model = nn.Linear(8, 3).to(dtype)
    list(train.fit(model, blobs, epochs=20, lr=0.01))
    assert model.weight.dtype == dtype
    assert train.accuracy_of(train.evaluate(model, blobs), blobs[1]) > 0.9


def test_weights_that_cannot_be_trained_are_refused(blobs):
    with pytest.raises(ValueError, match="float16 weights"):
        train.fit(nn.Linear(8, 3).half(), blobs)
    with pytest.raises(ValueError, match="precision is 'bf16'"):
        train.fit(nn.Linear(8, 3).double(), blobs, precision="bf16")


def test_finetune_leaves_its_argument_alone(net, blobs):
    before = weights(net).clone()
    tuned = train.finetune(net, blobs, epochs=1, precision="fp32")
    assert torch.equal(weights(net), before)
    assert not torch.equal(weights(tuned), before)


@pytest.mark.parametrize("stop", [1, 3])
def test_stopping_cancels_and_restores_the_mode(net, blobs, stop):
    net.eval()
    for progress in train.fit(net, blobs, epochs=5, precision="fp32"):
        assert net.training
        if progress.step == stop:
            break
    del progress
    assert not any(module.training for module in net.modules())


def test_progress_counts_steps_and_epochs(net, blobs):
    seen = fit(net, blobs, epochs=2, batch_size=100)
    assert [progress.step for progress in seen] == list(range(1, 9))
    assert [progress.epoch for progress in seen] == [1] * 4 + [2] * 4
    assert {progress.steps for progress in seen} == {8}
    assert seen[-1].loss > 0 and seen[-1].precision == "fp32"


def test_masked_weights_stay_zero(blobs):
    model = cl.zero_pruning.prune(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), sparsity=0.5)
    zero = model[0].weight == 0
    fit(model, blobs, epochs=3)
    assert zero.any() and (model[0].weight[zero] == 0).all()
    assert (model[0].weight[~zero] != 0).all()


def test_a_loss_of_ones_own_can_hold_a_teacher(net, blobs):
    teacher = nn.Linear(8, 3)

    def distillation(model, images, labels):
        return functional.mse_loss(model(images), teacher(images).detach())

    before = functional.mse_loss(train.evaluate(net, blobs), train.evaluate(teacher, blobs))
    fit(net, blobs, epochs=20, loss=distillation)
    assert functional.mse_loss(train.evaluate(net, blobs), train.evaluate(teacher, blobs)) < 0.5 * before


class Rescaled(nn.Module):
    """Cross entropy of logits times a factor that is trained along."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, model, images, labels):
        return functional.cross_entropy(self.factor * model(images), labels)


def test_the_parameters_of_a_loss_are_trained_along(net, blobs):
    twin, before = cl.layers.duplicate(net), weights(net)
    loss, again = Rescaled(), Rescaled()
    fit(net, blobs, epochs=5, loss=loss, lr=2e-3)
    fit(twin, blobs, epochs=5, loss=again, lr=2e-3)
    assert loss.factor.item() > 1.001  # surer is better, once the answers are right
    assert not torch.equal(weights(net), before)
    assert torch.equal(weights(net), weights(twin)) and torch.equal(loss.factor, again.factor)


def test_a_batch_never_holds_one_image_alone(blobs):
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    seen = fit(model, (blobs[0][:33], blobs[1][:33]), epochs=2, batch_size=16)
    assert len(seen) == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp32+channels_last", "bf16+channels_last"])
def test_every_precision_trains_a_convolution(precision):
    images, labels = torch.rand(64, 1, 8, 8), torch.arange(64) % 2
    images[labels == 1] += 1
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    before = torch.get_float32_matmul_precision()
    list(train.fit(model, (images, labels), epochs=30, lr=0.01, precision=precision))
    assert train.accuracy_of(train.evaluate(model, (images, labels)), labels) > 0.9
    assert torch.get_float32_matmul_precision() == before
    assert model[0].weight.dtype == torch.float32 and model[0].weight.is_contiguous()


@pytest.mark.parametrize("has_amx", [False, True])
def test_precision_goes_by_what_the_processor_has(net, monkeypatch, has_amx):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_amx, "avx512_bf16": True})
    arithmetic = "bf16" if has_amx else "fp32"
    assert train.choose_precision(net, "cpu").name == arithmetic
    assert train.choose_precision(nn.Conv2d(1, 2, 3), "cpu").name == f"{arithmetic}+channels_last"
    assert train.choose_precision(nn.Linear(8, 3).double(), "cpu").name == "fp32"


def test_a_processor_of_which_nothing_is_known_computes_in_fp32(net, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert train.choose_precision(net, "cpu").name == "fp32"


def found_lr(model, data, **settings):
    return next(iter(train.fit(model, data, precision="fp32", **({"steps": 50} | settings)))).lr


@pytest.mark.parametrize("steps", [50, 100], ids=["judged after one step", "judged after some steps"])
def test_the_rate_that_is_found_grows_with_the_damage(blobs, steps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    fresh = found_lr(model, blobs, steps=steps)
    trained = train.finetune(model, blobs, steps=2000, precision="fp32")
    damaged = cl.layers.duplicate(trained)
    with torch.no_grad():
        for weight in damaged.parameters():
            weight.copy_(torch.randn_like(weight) * weight.std())
    assert found_lr(trained, blobs, steps=steps) < min(fresh, found_lr(damaged, blobs, steps=steps))


@pytest.mark.parametrize("scale, shift", [(1e-3, 0.0), (1e4, 0.0), (1.0, -50.0)])
def test_the_rate_does_not_depend_on_the_scale_of_the_loss(net, blobs, scale, shift):
    def loss(model, images, labels):
        return scale * functional.cross_entropy(model(images), labels) + shift

    assert found_lr(net, blobs, loss=loss) == pytest.approx(found_lr(cl.layers.duplicate(net), blobs), rel=0.05)


def test_finding_a_rate_leaves_weights_statistics_and_random_numbers(blobs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    lr = found_lr(cl.layers.duplicate(model), blobs, steps=40)
    found = train.finetune(model, blobs, steps=40, precision="fp32")
    given = train.finetune(model, blobs, steps=40, precision="fp32", lr=lr)
    assert all(torch.equal(found.state_dict()[name], value) for name, value in given.state_dict().items())


def test_a_loss_that_no_rate_changes_trains_with_a_usual_one(blobs):
    model = nn.Linear(8, 3)
    assert 1e-3 <= found_lr(model, blobs, loss=lambda model, images, labels: 0 * model(images).sum()) <= 4e-3


def test_a_tenth_of_the_steps_rises_to_the_peak_then_the_rate_falls_to_nothing():
    shares = [train._share_of_peak(step, 100) for step in range(100)]
    assert shares.index(max(shares)) == 10 and max(shares) == 1
    assert 0 < shares[0] < 0.1 and 0 < shares[-1] < 0.02
    assert all(train._share_of_peak(0, steps) > 0 for steps in (1, 2, 3))


def test_evaluate_equals_a_forward_pass_and_leaves_the_model(blobs):
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model[1].eval()
    state = copy.deepcopy(model.state_dict())
    logits = train.evaluate(model, blobs, batch_size=7)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert torch.allclose(logits, model.eval()(blobs[0]), atol=1e-6)


def test_evaluate_of_a_convolution_equals_a_forward_pass():
    images, model = torch.rand(130, 3, 8, 8), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    model = cl.layers.duplicate(model)
    cl.layers.set_mask(model[0], torch.rand(4, 3, 3, 3) < 0.5)
    logits = train.evaluate(model, images)
    assert torch.allclose(logits, model(images), atol=1e-5)
    assert all(weight.is_contiguous() for weight in model.parameters())


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_images_hold_the_same_pixels(channels):
    images = torch.rand(4, channels, 5, 6)
    laid = train.lay_out(images, train.Precision(channels_last=True))
    assert torch.equal(laid, images)
    assert laid.stride() == (30 * channels, 1, 6 * channels, channels)
    assert train.lay_out(images, train.Precision()).stride() == images.stride()


def test_a_row_with_nan_is_wrong():
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [2.0, 1.0]])
    assert train.accuracy_of(logits, torch.tensor([1, 0, 0])) == pytest.approx(2 / 3)


def test_evaluate_in_half_precision(blobs):
    logits = train.evaluate(nn.Linear(8, 3).to(torch.bfloat16), blobs)
    assert logits.dtype == torch.float32 and logits.shape == (400, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"epochs": 1, "steps": 1}, "give one of the two"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"precision": "int3"}, "precision is 'int3'"),
    ],
)
def test_bad_settings_are_named_before_training_starts(net, blobs, settings, message):
    with pytest.raises(ValueError, match=message):
        train.fit(net, blobs, **settings)


def test_weights_that_are_nan_are_named(net, blobs):
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="model has weights that are nan"):
        train.fit(net, blobs)


def test_a_seed_of_numpy(net, blobs):
    one, other = (train.finetune(net, blobs, steps=2, seed=seed, precision="fp32") for seed in (3, np.int64(3)))
    assert torch.equal(weights(one), weights(other))


def test_bad_data_is_named(net, blobs):
    with pytest.raises(ValueError, match="labels go up to 5, the model has 3 classes"):
        train.fit(net, (blobs[0], blobs[1] + 3))
    with pytest.raises(ValueError, match=r"does not take images of shape \(2, 7\)"):
        train.fit(net, (blobs[0][:, :7], blobs[1]))
    with pytest.raises(ValueError, match="must return logits"):
        train.evaluate(nn.Flatten(0), blobs)
    with pytest.raises(ValueError, match="empty"):
        train.evaluate(net, blobs[0][:0])


def test_a_frozen_model_is_refused(net, blobs):
    with pytest.raises(ValueError, match="nothing to train"):
        train.fit(net.requires_grad_(False), blobs)


def test_a_diverging_loss_is_an_error(net, blobs):
    with pytest.raises(ArithmeticError, match="the loss is nan"):
        fit(net, blobs, steps=2, loss=lambda model, images, labels: model(images).mean() * float("nan"))


def test_threads_are_pinned_and_restored():
    before = torch.get_num_threads()
    with train.threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="threads is 0"), train.threads(0):
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_fit_on_cuda_brings_the_model_back(net, blobs):
    fit(net, blobs, epochs=3)
    assert next(net.parameters()).device.type == "cpu"
    assert train.accuracy_of(train.evaluate(net, blobs), blobs[1]) > 0.8


def test_a_cancel_is_heeded_at_the_next_step():
    """The loop hands over after every batch of the article's network, so the longest wait is one step."""
    model, images = cl.models.article_mlp(seed=0), torch.rand(2048, 1, 28, 28)
    steps = train.fit(model, (images, torch.arange(2048) % 10), epochs=5, precision="fp32")
    handed = [next(steps).step for _ in range(5)]
    before = weights(model).clone()
    steps.close()
    assert handed == [1, 2, 3, 4, 5]
    assert torch.equal(weights(model), before)


class Odd(nn.Module):
    """A linear model with batch norm and dropout, whose outputs in training mode are something else."""

    def __init__(self, change):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
        self.change = change

    def forward(self, images):
        logits = self.layers(images)
        return self.change(logits) if self.training else logits


ODD = {
    "tuple": (lambda logits: (logits, logits), "returned tuple for 2 images in training mode; it must return logits"),
    "dict": (lambda logits: {"logits": logits}, "returned dict for 2 images in training mode"),
    "shape": (lambda logits: logits[:, None], r"returned \(2, 1, 3\) for 2 images in training mode"),
    "fewer classes": (lambda logits: logits[:, :2], "has 3 classes, but 2 in training mode"),
    "no gradient": (lambda logits: logits.detach(), "no gradient in training mode"),
    "error": (lambda logits: {}["key"], r"does not take images of shape \(2, 8\): KeyError: 'key'"),
}


@pytest.mark.parametrize("change, message", ODD.values(), ids=ODD.keys())
def test_outputs_in_training_mode_are_checked_before_the_first_step(blobs, change, message):
    model = Odd(change)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        train.fit(model, blobs)
    with pytest.raises(ValueError, match="student: .*" + message):
        cl.distillation.distill(model, model, blobs)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_check_in_training_mode_changes_no_training(blobs):
    model = Odd(lambda logits: logits)
    fit(model, blobs, steps=0)
    assert int(model.layers[0].num_batches_tracked) == 0


@pytest.mark.parametrize("error", [AssertionError("odd"), IndexError("odd"), TypeError("odd"), StopIteration("odd")])
def test_whatever_a_forward_raises_is_said_with_its_type(blobs, error):
    class Raising(nn.Linear):
        def forward(self, images):
            raise error

    model, message = Raising(8, 3), f"not take images of shape .*: {type(error).__name__}: odd"
    with pytest.raises(ValueError, match=message):
        train.evaluate(model, blobs)
    with pytest.raises(ValueError, match=message):
        train.fit(model, blobs)
    with pytest.raises(ValueError, match=message):
        fit(model, blobs, loss=lambda model, images, targets: model(images).mean())
    with pytest.raises(ValueError, match=message):
        cl.activation_pruning.prune(model, blobs[0], sparsity=0.5)
    with pytest.raises(ValueError, match=f"{type(error).__name__}: odd"):
        cl.measure.macs(model, (8,))
    with pytest.raises(ValueError, match=f"{type(error).__name__}: odd"):
        cl.measure.latency(model)
    with pytest.raises(ValueError, match=f"teacher: .*{type(error).__name__}: odd"):
        cl.distillation.distill(nn.Linear(8, 3), model, blobs)


def squares(model, images, targets):
    return (model(images) - targets).square().mean()


def next_words(model, images, targets):
    return functional.cross_entropy(model(images).flatten(0, 1), targets.flatten())


WORDS = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))


class HeadFirst(nn.Module):
    """A language model whose first module is not its embedding."""

    def __init__(self):
        super().__init__()
        self.head, self.table = nn.Linear(4, 9), nn.Embedding(9, 4)

    def forward(self, words):
        return self.head(self.table(words))


OWN = {
    "regression": (nn.Sequential(nn.Linear(8, 1), nn.Flatten(0)), torch.rand(64, 8), -torch.rand(64), squares),
    "several labels": (nn.Linear(8, 3), torch.rand(64, 8), (torch.rand(64, 3) > 0.5).double(), squares),
    "images": (nn.Conv2d(1, 1, 3, padding=1), torch.rand(64, 1, 5, 5), torch.rand(64, 1, 5, 5), squares),
    "arrays": (nn.Linear(8, 3), np.random.rand(64, 8), np.random.rand(64, 3), squares),
    "next words": (WORDS, torch.randint(9, (64, 5)), torch.randint(9, (64, 5)), next_words),
    "head first": (HeadFirst(), torch.randint(9, (64, 5)), torch.randint(9, (64, 5)), next_words),
}


@pytest.mark.parametrize("model, images, targets, loss", OWN.values(), ids=OWN.keys())
def test_a_loss_of_ones_own_decides_what_outputs_and_targets_are(model, images, targets, loss):
    before = weights(model)
    assert not torch.equal(before, weights(train.finetune(model, (images, targets), steps=2, loss=loss, bar=False)))
    with pytest.raises(ValueError, match="labels (have shape|hold)|it must return logits"):
        train.fit(model, (images, targets))
    with pytest.raises(ValueError, match="labels (have shape|hold)|must return logits"):
        cl.measure.accuracy(model, (images, targets))


BAD_LOSSES = {
    "a word": ("mse", "loss is 'mse'; give a function"),
    "a vector": (lambda model, images, labels: model(images).mean(0), r"loss returned Tensor of shape \(3,\)"),
    "a number": (lambda model, images, labels: 1.0, "loss returned 1.0; it must return a scalar tensor"),
    "an error": (lambda model, images, labels: labels[999], "do not take images of shape .*: IndexError"),
}


@pytest.mark.parametrize("loss, message", BAD_LOSSES.values(), ids=BAD_LOSSES.keys())
def test_what_is_no_loss_is_said(net, blobs, loss, message):
    with pytest.raises(ValueError, match=message):
        fit(net, blobs, loss=loss)


LABELS = {
    "fractions": (lambda labels: labels + 0.5, "labels hold 0.5; give whole numbers"),
    "one-hot": (functional.one_hot, r"labels have shape \(400, 3\) for 400 images; .*labels.argmax\(1\)"),
    "a column": (lambda labels: labels[:, None], r"labels have shape \(400, 1\) for 400 images; .*labels\[:, 0\]"),
    "negative": (lambda labels: labels - 1, "labels hold -1; give class numbers from 0"),
    "beyond": (lambda labels: labels + 1, "labels (go up|run from 1) to 3"),
    "text": (lambda labels: ["cat"] * 400, r"they are text \('cat'\); number the classes from 0"),
}


@pytest.mark.parametrize("change, message", LABELS.values(), ids=LABELS.keys())
def test_labels_that_are_no_classes_are_refused(net, blobs, change, message):
    images, labels = blobs[0], change(blobs[1])
    for data in [(images, labels), *([cl.data.Split(images, labels)] if isinstance(labels, torch.Tensor) else [])]:
        for refuse in (train.fit, cl.measure.accuracy, lambda model, data: cl.distillation.distill(model, model, data)):
            with pytest.raises(ValueError, match=message):
                refuse(net, data)


def test_bytes_are_no_words():
    with pytest.raises(ValueError, match="RuntimeError: .*indices"):
        fit(WORDS, (torch.randint(9, (64, 5)).byte(), torch.zeros(64, 5).long()), loss=next_words)


def test_threads_that_share_an_evaluation_change_no_bit(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    images = torch.rand(64, 1, 8, 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    with train.threads(1):
        shared = train.evaluate(model, images, batch_size=4)
        monkeypatch.setattr(train, "EVALUATORS", 3)
        assert torch.equal(shared, train.evaluate(model, images, batch_size=4))


def test_a_model_that_may_note_what_it_sees_is_evaluated_in_order(monkeypatch):
    seen, model = [], nn.Linear(1, 2)
    model.register_forward_hook(lambda module, inputs, output: seen.append(threading.current_thread()))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    with train.threads(1):
        train.evaluate(model, torch.rand(8, 1), batch_size=1)
    assert seen == 8 * [threading.current_thread()]


def test_slow_batchnorm_statistics_follow_a_short_training():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        labels = torch.arange(1000) % 2
        images = torch.randn(1000, 4) + 3 * labels[:, None] + 50
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.01), nn.ReLU(), nn.Linear(8, 2))
    trained = cl.train.finetune(net, (images, labels), steps=80, bar=False)
    assert cl.measure.accuracy(trained, (images, labels)) > 0.95
    assert trained[1].momentum == 0.01
