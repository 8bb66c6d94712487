"""Exercises of notebook 03: right answers pass, plausible wrong ones do not, and hints fit the mistake."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.classroom import activation_pruning as exercises

pytestmark = pytest.mark.slow


def sliced(conv, linear, rows, columns):
    """Both layers with these rows and columns only, and the attributes that go with them."""
    conv, linear = cl.layers.duplicate(conv), cl.layers.duplicate(linear)
    conv.weight, conv.bias = nn.Parameter(conv.weight[rows]), nn.Parameter(conv.bias[rows])
    linear.weight = nn.Parameter(linear.weight[:, columns])
    conv.out_channels, linear.in_features = len(conv.weight), linear.weight.shape[1]
    return conv, linear


def slice_channels(conv, linear, keep):
    return sliced(conv, linear, keep, keep.repeat_interleave(linear.in_features // len(keep)))


def built_anew(conv, linear, keep):
    positions = linear.in_features // conv.out_channels
    small = nn.Conv2d(conv.in_channels, int(keep.sum()), conv.kernel_size, conv.stride, conv.padding)
    reader = nn.Linear(positions * small.out_channels, linear.out_features)
    with torch.no_grad():
        small.weight.copy_(conv.weight[keep]), small.bias.copy_(conv.bias[keep])
        blocks = linear.weight.unflatten(1, (len(keep), positions))
        reader.weight.copy_(blocks[:, keep].flatten(1)), reader.bias.copy_(linear.bias)
    return [small, reader]


def interleaved(conv, linear, keep):
    return sliced(conv, linear, keep, keep.repeat(linear.in_features // len(keep)))


def masked(conv, linear, keep):
    linear = cl.layers.duplicate(linear)
    with torch.no_grad():
        linear.weight[:, ~keep.repeat_interleave(linear.in_features // len(keep))] = 0
    return conv, linear


def first_ones(conv, linear, keep):
    rows = torch.arange(len(keep)) < int(keep.sum())
    return sliced(conv, linear, rows, rows.repeat_interleave(linear.in_features // len(keep)))


def rows_alone(conv, linear, keep):
    return sliced(conv, linear, keep, torch.ones(linear.in_features, dtype=torch.bool))


def last_columns(conv, linear, keep):
    columns = torch.arange(linear.in_features) >= linear.in_features - int(keep.sum()) * linear.in_features // len(keep)
    return sliced(conv, linear, keep, columns)


def old_bias(conv, linear, keep):
    small, reader = slice_channels(conv, linear, keep)
    small.bias = conv.bias
    return small, reader


def no_bias(conv, linear, keep):
    small, reader = slice_channels(conv, linear, keep)
    small.bias = None
    return small, reader


def old_attributes(conv, linear, keep):
    small, reader = slice_channels(conv, linear, keep)
    small.out_channels = conv.out_channels
    return small, reader


def no_padding(conv, linear, keep):
    small, reader = slice_channels(conv, linear, keep)
    small.padding = (0, 0)
    return small, reader


def folded(conv, linear, keep):
    small, reader = slice_channels(conv, linear, keep)
    with torch.no_grad():
        reader.bias += linear.weight[:, ~keep.repeat_interleave(linear.in_features // len(keep))].sum(1)
    return small, reader


def spread_times_norm(activations, linear):
    return activations.var(0) * linear.weight.norm(dim=0) ** 2


def brute_force(activations, linear):
    centred = activations - activations.mean(0)
    return torch.stack([(centred[:, [one]] @ linear.weight[:, [one]].T).norm() for one in range(activations.shape[1])])


def tiny(rows, biases, columns):
    """Linear - ReLU - Linear: incoming weights and biases of the neurons, and their outgoing weights."""
    rows, columns = torch.tensor(rows).float(), torch.tensor(columns).float()
    network = nn.Sequential(nn.Linear(2, len(rows)), nn.ReLU(), nn.Linear(len(rows), 2))
    with torch.no_grad():
        network[0].weight.copy_(rows), network[0].bias.copy_(torch.tensor(biases))
        network[2].weight.copy_(columns), network[2].bias.zero_()
    return network


def mean_fails(always_on=9.0, weight=0.0, outgoing=0.0):
    """Two neurons that tell the classes apart, and two that are always on."""
    rows = [[1.0, -1.0], [-1.0, 1.0], [weight, 0.0], [0.0, weight]]
    return tiny(rows, [0.0, 0.0, always_on, always_on], [[1.0, 0.0, outgoing, 0.0], [0.0, 1.0, 0.0, outgoing]])


RIGHT = {
    "03.slice_channels": [slice_channels, built_anew],
    "03.score": [
        spread_times_norm,
        brute_force,
        lambda h, linear: h.std(0) * linear.weight.norm(dim=0),
        lambda h, linear: (h.var(0) * linear.weight.square().sum(0)).double().detach(),
    ],
    "03.mean_fails": [mean_fails(), mean_fails(weight=0.01), mean_fails(always_on=2.0, outgoing=1.0)],
}
WRONG = {
    "03.slice_channels": [
        (interleaved, "side by side"),
        (masked, "the convolution's weight is (6, 2, 3, 3), not (3, 2, 3, 3)"),
        (first_ones, "the same channels"),
        (lambda conv, linear, keep: slice_channels(conv, linear, ~keep) if 0 < keep.sum() < len(keep) else None, ""),
        (rows_alone, "the linear layer's weight is"),
        (last_columns, "the same channels"),
        (old_bias, "the convolution's bias is"),
        (no_bias, "bias is None"),
        (old_attributes, "out_channels and in_features"),
        (no_padding, ""),
        (folded, "the logits differ"),
        (lambda conv, linear, keep: slice_channels(conv, linear, keep)[0], "give two layers"),
        (lambda conv, linear, keep: slice_channels(conv, linear, keep)[::-1], "give two layers"),
        (lambda conv, linear, keep: nn.Sequential(*slice_channels(conv, linear, keep)), "give two layers"),
        (lambda conv, linear, keep: None, "not answered yet"),
        (lambda conv, linear, keep: (None, None), "not answered yet"),
        (slice_channels(nn.Conv2d(1, 2, 3), nn.Linear(4, 1), torch.tensor([True, False])), "the function itself"),
    ],
    "03.score": [
        (lambda h, linear: h.mean(0), "is missed less than"),
        (lambda h, linear: h.std(0), "is missed less than"),
        (lambda h, linear: h.var(0), "is missed less than"),
        (lambda h, linear: (h > 0).float().mean(0), "is missed less than"),
        (lambda h, linear: linear.weight.norm(dim=0), "is missed less than"),
        (lambda h, linear: h.mean(0) * linear.weight.norm(dim=0), "is missed less than"),
        (lambda h, linear: h.square().mean(0) * linear.weight.square().sum(0), "is missed less than"),
        (lambda h, linear: h.var(0) * linear.weight.norm(dim=0), "is missed less than"),
        (lambda h, linear: h.std(0) * linear.weight.square().sum(0), "is missed less than"),
        (lambda h, linear: h.std(0) * linear.weight.abs().sum(0), "is missed less than"),
        (lambda h, linear: h.std(0) * linear.weight.sum(0).abs(), "is missed less than"),
        (lambda h, linear: h.std(0) * linear.weight.abs().max(0).values, "is missed less than"),
        (lambda h, linear: -spread_times_norm(h, linear), "is missed less than"),
        (lambda h, linear: spread_times_norm(h, linear).argsort(), "is missed less than"),
        (lambda h, linear: spread_times_norm(h, linear).argsort().argsort()[:3], "one score a neuron"),
        (lambda h, linear: h.var(0) * linear.weight.norm(dim=1) ** 2, "stopped with"),
        (lambda h, linear: spread_times_norm(h, linear).tolist(), "one score a neuron"),
        (lambda h, linear: torch.full((h.shape[1],), float("nan")), ""),
        (torch.ones(12), "the function itself"),
    ],
    "03.mean_fails": [
        (mean_fails(always_on=0.1), "highest mean"),
        (mean_fails(weight=3.0), "never vary"),
        (mean_fails(weight=3.0, outgoing=5.0), "highest mean"),
        (tiny([[0.0, 0.0]] * 4, [1.0] * 4, [[0.0] * 4] * 2), "two classes"),
        (tiny([[1.0, -1.0], [-1.0, 1.0]], [0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]), ""),
        (tiny([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], [0.0] * 4, [[1.0, 0, 0, 0], [0, 1.0, 0, 0]]), ""),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "take 2 numbers"),
        (nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)), "give an nn.Sequential"),
        (nn.Linear(2, 2), "give an nn.Sequential"),
        (mean_fails, "give an nn.Sequential"),
    ],
}


@pytest.mark.parametrize("name, answer", [(name, answer) for name in RIGHT for answer in RIGHT[name]])
def test_right_answers_pass(name, answer):
    result = cl.classroom.check(name, answer)
    assert result, result.message
    assert "right." in result.message and len(result.message) < 320


@pytest.mark.parametrize("name, answer, hint", [(name, *one) for name in WRONG for one in WRONG[name]])
def test_wrong_answers_fail_with_a_hint_that_fits(name, answer, hint):
    result = cl.classroom.check(name, answer)
    assert not result
    assert hint.lower() in result.message.lower()


def test_random_weights_are_no_network_that_the_mean_fails():
    for seed in range(5):
        torch.manual_seed(seed)
        assert not cl.classroom.check("03.mean_fails", nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)))


def test_what_is_missed_is_the_variance_times_the_squared_outgoing_norm():
    for activations, linear in exercises._layers().values():
        expected = activations.var(0, correction=0) * linear.weight.square().sum(0)
        assert torch.allclose(exercises._missed(activations, linear).float(), expected, rtol=1e-3, atol=1e-6)


@functools.cache
def chosen():
    """article_mlp with over 80% fewer parameters, retrained for a moment, and its interval on the test images."""
    data, dense = cl.data.load("mnist"), cl.models.pretrained("article_mlp", "mnist")
    pruned = cl.activation_pruning.prune(dense, data.train.images[:1000], sparsity=0.66, statistic="variance")
    model = cl.train.finetune(pruned, data.train, epochs=3, precision="fp32", bar=False)
    return pruned, model, cl.measure.accuracy_interval(model, data.test)


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_report_of_a_chosen_model_passes_and_tells_the_interval(kind):
    _, model, interval = chosen()
    result = cl.classroom.check("03.report", kind((model, interval)))
    assert result, result.message
    assert f"{interval.accuracy:.2%} on test" in result.message and "fewer parameters" in result.message


def test_a_wrong_model_or_interval_fails_with_a_hint_that_fits():
    data, dense = cl.data.load("mnist"), cl.models.pretrained("article_mlp", "mnist")
    pruned, model, interval = chosen()
    mask = cl.zero_pruning.prune(dense, sparsity=0.8)
    small = cl.models.lenet_300_100(seed=0)
    enough = cl.activation_pruning.prune(dense, data.train.images[:1000], sparsity=0.54, statistic="variance")
    narrow = SimpleNamespace(accuracy=interval.accuracy, low=interval.accuracy, high=interval.accuracy)
    wrong = {
        "0% of the parameters are gone": [(dense, interval), (mask, cl.measure.accuracy_interval(mask, data.test))],
        "% of the parameters are gone": [(small, interval)],
        "72% of the parameters are gone, 80% are asked for": [(enough, interval)],
        "points, 0.4 are allowed": [(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), interval)],
        "on which the model was chosen": [(model, cl.measure.accuracy_interval(model, data.validation))],
        "not those of a 95% interval": [
            (model, narrow),
            (model, cl.measure.accuracy_interval(model, data.test, confidence=0.8)),
        ],
        "on the test images": [
            (model, cl.measure.accuracy_interval(model, data.train[:2000])),
            (model, cl.measure.accuracy_interval(dense, data.test)),
        ],
        "what cl.measure.accuracy_interval returns": [(model, interval.accuracy), (model, (0.97, 0.98))],
        "the first of the two should be the model": [(interval, model)],
        "Give two things": [model, (model,), (model, interval, 0.98), 0.98],
    }
    for hint, answers in wrong.items():
        for answer in answers:
            result = cl.classroom.check("03.report", answer)
            assert not result, result.message
            assert hint.lower() in result.message.lower(), result.message
    assert not cl.classroom.check("03.report", (pruned, cl.measure.accuracy_interval(pruned, data.test)))
