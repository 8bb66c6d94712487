"""Distillation: losses against hand calculation, students of many makes, what the lab is told and shown."""

import copy
import math

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

import compresslab as cl
from compresslab.techniques import distillation, distillation_losses
from compresslab.techniques.distillation import distill, loss, student_of
from tests.techniques.samples import NarrowResNet, narrow_mobilenet

pytestmark = pytest.mark.slow

QUIET = {"bar": False, "precision": "fp32"}


def network(*widths, seed=0):
    torch.manual_seed(seed)
    pairs = zip(widths, widths[1:], strict=False)
    return nn.Sequential(*[layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())][:-1])


def data_of(count=240, features=8, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randn(count, features, generator=generator) + 2 * torch.eye(classes, features)[labels]
    return cl.data.from_tensors(images, labels, seed=0)


@pytest.fixture(scope="module")
def data():
    return data_of()


@pytest.fixture(scope="module")
def teacher(data):
    return cl.train.finetune(network(8, 20, 12, 3), data.train, epochs=20, lr=0.01, **QUIET).eval()


def batch(count=10, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, classes, generator=generator, dtype=torch.float64) for _ in range(2)]


def gradient(value, tensor):
    return torch.autograd.grad(value, tensor)[0]


@pytest.mark.parametrize("temperature", [0.5, 1, 4, 20])
def test_the_response_loss_and_its_gradient_are_those_of_the_paper(temperature):
    student, told = batch()
    student.requires_grad_()
    soft, answer = ((logits / temperature).softmax(1) for logits in (told, student))
    value = distillation.response_loss(student, told, temperature)
    expected = temperature**2 * (soft * (soft / answer).log()).sum() / len(told)
    assert value.item() == pytest.approx(expected.item())
    by_hand = temperature * (answer - soft) / len(told)  # Hinton et al. 2015, equation 2, times T**2
    assert torch.allclose(gradient(value, student), by_hand.detach())


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_the_whole_loss_has_the_gradient_of_its_formula(alpha, smoothing):
    images, labels = torch.randn(9, 8, dtype=torch.float64), torch.arange(9) % 3
    teacher, student = network(8, 5, 3).double(), network(8, 4, 3, seed=1).double()
    made = loss(teacher, 3.0, alpha, label_smoothing=smoothing)
    logits = student(images)
    soft, hard = (teacher(images) / 3).softmax(1), (1 - smoothing) * functional.one_hot(labels, 3) + smoothing / 3
    by_hand = alpha * 3 * ((logits / 3).softmax(1) - soft) + (1 - alpha) * (logits.softmax(1) - hard)
    weight = student[2].bias
    assert torch.allclose(gradient(made(student, images, labels), weight), by_hand.sum(0) / 9)


def test_the_feature_loss_is_the_error_relative_to_the_teachers_features():
    mine, theirs = batch()
    expected = ((mine - theirs) ** 2).mean() / (theirs**2).mean()
    assert distillation.feature_loss(mine, theirs).item() == pytest.approx(expected.item())
    assert distillation.feature_loss(theirs, theirs) == 0
    assert distillation.feature_loss(torch.zeros(3, 2), torch.zeros(3, 2)) == 0


def huber(value):
    return 0.5 * value**2 if abs(value) < 1 else abs(value) - 0.5


def relations_by_hand(mine, theirs):
    """Park et al. 2019, equations 4 to 9, entry by entry."""
    count, distances, angles = len(mine), [], []
    for features in (mine.numpy(), theirs.numpy()):
        apart = np.array([[np.linalg.norm(a - b) for a in features] for b in features])
        distances.append(apart / (apart.sum() / (count * (count - 1))))
        away = [[(b - a) / (np.linalg.norm(b - a) or 1) for b in features] for a in features]
        angles.append(np.array([[[one @ two for one in ends] for two in ends] for ends in away]))
    return sum(
        weight * np.mean([huber(value) for value in (pair[0] - pair[1]).ravel()])
        for weight, pair in ((1, distances), (2, angles))
    )


def test_the_relation_loss_is_that_of_the_paper_whatever_the_widths():
    mine, theirs = torch.randn(2, 7, 4, dtype=torch.float64)
    value = distillation.relation_loss(mine, theirs[:, :3])
    assert value.item() == pytest.approx(relations_by_hand(mine, theirs[:, :3]), abs=1e-6)
    assert distillation.relation_loss(mine * 5 + 3, mine).item() == pytest.approx(0, abs=1e-9)  # same relations


@pytest.mark.parametrize("features", [torch.ones(6, 3), torch.zeros(1, 3), torch.randn(2, 3), torch.randn(300, 2, 2)])
def test_relations_of_few_many_and_equal_images_are_finite(features):
    mine = features.clone().requires_grad_()
    value = distillation.relation_loss(mine, torch.randn(len(features), 5))
    assert value.isfinite() and gradient(value, mine).isfinite().all()


@pytest.mark.parametrize("kind", distillation_losses.KNOWLEDGE)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind, teacher, data):
    images, labels = data.train.images[:20], data.train.labels[:20]
    made = loss(teacher, 4, 1, kind, student=teacher, images=images)
    if made.regressor is not None:
        nn.init.eye_(made.regressor.weight), nn.init.zeros_(made.regressor.bias)
    assert made(teacher, images, labels).item() == pytest.approx(0, abs=1e-6)


def test_without_alpha_the_teacher_is_not_asked_and_training_is_the_ordinary_one(teacher, data):
    student = network(8, 6, 3)
    plain = cl.train.finetune(student, data.train, steps=9, **QUIET)
    taught = distill(student, teacher, data.train, alpha=0, steps=9, **QUIET)
    assert all(torch.equal(one, two) for one, two in zip(plain.parameters(), taught.parameters(), strict=True))
    made = loss(teacher, alpha=0)
    made._ask = None
    images, labels = data.train.images[:5], data.train.labels[:5]
    assert torch.equal(made(student, images, labels), functional.cross_entropy(student(images), labels))


def test_with_alpha_one_the_labels_are_not_asked(teacher, data):
    student, wrong = network(8, 6, 3), torch.full_like(data.train.labels, 99)
    right, without = (
        distill(student, teacher, (data.train.images, labels), alpha=1, steps=9, **QUIET)
        for labels in (data.train.labels, wrong)
    )
    assert all(torch.equal(one, two) for one, two in zip(right.parameters(), without.parameters(), strict=True))


@pytest.mark.parametrize("kind", distillation_losses.KNOWLEDGE)
def test_neither_network_is_changed_and_a_seed_repeats(kind, teacher, data):
    student, teacher = network(8, 6, 5, 3, seed=3).eval(), copy.deepcopy(teacher).train()
    teacher[2].eval()
    before = [copy.deepcopy(net.state_dict()) for net in (student, teacher)]
    modes, random = [one.training for one in teacher.modules()], torch.get_rng_state()
    options = {"knowledge": kind, "steps": 5, **QUIET}
    runs = [distill(student, teacher, data.train, seed=seed, **options) for seed in (0, 0, 1)]
    weights = [torch.cat([weight.flatten() for weight in run.parameters()]) for run in runs]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert all(torch.equal(net.state_dict()[name], value) for net, state in zip((student, teacher), before, strict=True)
               for name, value in state.items())  # fmt: skip
    assert [one.training for one in teacher.modules()] == modes and runs[0] is not student
    assert torch.equal(torch.get_rng_state(), random)
    assert all(weight.grad is None for weight in teacher.parameters()) and not runs[0].training


@pytest.mark.parametrize("kind", distillation_losses.KNOWLEDGE)
def test_every_kind_of_knowledge_brings_the_student_nearer_to_its_teacher(kind, teacher, data):
    student, images = network(8, 10, 6, 3, seed=5), data.train.images
    made = loss(teacher, alpha=1, knowledge=kind, student=student, images=images)
    tuned = distill(student, teacher, data.train, alpha=1, knowledge=kind, epochs=15, lr=0.01, **QUIET)
    after = loss(teacher, alpha=1, knowledge=kind, student=tuned, images=images)
    if kind == "feature":  # a regressor for each, fitted by least squares: how much of the features is in the student's
        errors = [unexplained(net, teacher, images) for net in (student, tuned)]
    else:
        errors = [one(net, images, data.train.labels).item() for one, net in ((made, student), (after, tuned))]
    assert errors[1] < 0.7 * errors[0]


def unexplained(student, teacher, images):
    """Share of the teacher's last hidden features that no linear map of the student's gives."""
    with torch.no_grad():
        mine, theirs = student[:-1](images), teacher[:-1](images)
        mine = torch.cat([mine, torch.ones(len(mine), 1)], 1)
        fitted = mine @ torch.linalg.lstsq(mine, theirs, driver="gelsd").solution
    return distillation.feature_loss(fitted, theirs).item()


def test_the_regressor_is_the_only_thing_that_the_loss_trains(teacher, data):
    student = network(8, 6, 5, 3)
    made = loss(teacher, knowledge="feature", student=student, images=data.train.images, seed=4)
    assert [tuple(weight.shape) for weight in made.parameters()] == [(12, 5), (12,)]
    first = made.regressor.weight.detach().clone()
    again = loss(teacher, knowledge="feature", student=student, images=data.train.images, seed=4)
    assert torch.equal(first, again.regressor.weight)
    for _ in cl.train.fit(student, data.train, steps=3, loss=made, **QUIET):
        pass
    assert not torch.equal(first, made.regressor.weight)
    assert not list(loss(teacher).parameters()) and not list(loss(teacher).modules())[1:]


def test_masks_and_frozen_weights_of_the_student_stay(teacher, data):
    student = cl.zero_pruning.prune(network(8, 6, 3), 0.5)
    student[2].bias.requires_grad_(False)
    tuned = distill(student, teacher, data.train, steps=5, **QUIET)
    assert torch.equal(cl.layers.get_mask(tuned[0]), cl.layers.get_mask(student[0]))
    assert ((tuned[0].weight == 0) >= ~cl.layers.get_mask(student[0])).all()
    assert torch.equal(tuned[2].bias, student[2].bias) and not tuned[2].bias.requires_grad


@pytest.mark.parametrize("change", ["half", "bfloat16", "double", "masked"])
def test_a_teacher_of_any_make_tells_the_same(change, teacher, data):
    images, labels = data.train.images[:20], data.train.labels[:20]
    other = cl.zero_pruning.prune(teacher, 0.0) if change == "masked" else getattr(copy.deepcopy(teacher), change)()
    student = network(8, 6, 3)
    values = [loss(net)(student, images, labels) for net in (teacher, other)]
    assert values[0].dtype == values[1].dtype
    assert values[1].item() == pytest.approx(values[0].item(), rel=0.02)
    if change != "masked":
        assert other[0].weight.dtype == getattr(copy.deepcopy(teacher), change)()[0].weight.dtype


@pytest.mark.parametrize("kind", distillation_losses.KNOWLEDGE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_students_of_other_precisions_learn(kind, dtype, teacher, data):
    tuned = distill(network(8, 6, 5, 3).to(dtype), teacher, data.train, knowledge=kind, steps=2, **QUIET)
    assert tuned[0].weight.dtype == dtype and tuned[0].weight.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no second device")
def test_teacher_and_student_on_different_devices(teacher, data):
    tuned = distill(network(8, 6, 3), copy.deepcopy(teacher).cuda(), data.train, steps=2, bar=False)
    assert tuned[0].weight.device.type == "cpu"


def test_answers_are_remembered_and_are_the_same(teacher, data, monkeypatch):
    student = network(8, 6, 5, 3)
    for kind in distillation_losses.KNOWLEDGE:
        runs = []
        for most in (10_000, 0):
            monkeypatch.setattr(distillation_losses, "REMEMBERED", most)
            runs.append(distill(student, teacher, data.train, knowledge=kind, steps=6, **QUIET))
        assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(*(run.parameters() for run in runs), strict=True))


class Pair(nn.Module):
    """Two layers whose first gives two things, and a third that never runs."""

    def __init__(self):
        super().__init__()
        self.body, self.unused, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(3, 3), nn.Linear(4, 3)

    def forward(self, images):
        return self.head(self.body(images[..., None])[0][:, -1])


@pytest.mark.parametrize("hint", [None, "0", ("0", "2"), ("body", "0"), ("body", None)], ids=str)
@pytest.mark.parametrize("kind", ["feature", "relation"])
def test_any_layer_may_be_the_hint(hint, kind, teacher, data):
    student = Pair() if hint and hint[0] == "body" else network(8, 6, 3)
    tuned = distill(student, teacher, data.train, knowledge=kind, hint=hint, steps=2, batch_size=16, **QUIET)
    assert tuned is not student


def test_convolutions_of_one_size_are_matched_place_by_place():
    images, labels = torch.rand(6, 1, 6, 6), torch.arange(6) % 2
    nets = [nn.Sequential(nn.Conv2d(1, width, 3), nn.Flatten(), nn.Linear(16 * width, 2)) for width in (3, 5)]
    made = loss(nets[1], knowledge="feature", hint="0", student=nets[0], images=images)
    assert made.regressor.weight.shape == (5, 3)
    assert made(nets[0], images, labels).isfinite()


@pytest.mark.parametrize("width, widths", [(1.0, (20, 12)), (0.5, (10, 6)), (0.25, (5, 3)), (1e-6, (1, 1))])
def test_a_student_is_narrower_and_fresh(width, widths, teacher, data):
    student = student_of(teacher, data.train.images, width)
    assert (student[0].out_features, student[2].out_features, student[4].out_features) == (*widths, 3)
    assert student(data.train.images).shape == (len(data.train), 3)
    assert not torch.equal(student[0].weight, teacher[0].weight[: widths[0]])
    bound = 1 / math.sqrt(8)
    assert student[0].weight.abs().max() <= bound  # torch's default initialization
    again, other = (student_of(teacher, data.train.images, width, seed=seed) for seed in (0, 1))
    assert torch.equal(student[0].weight, again[0].weight) and not torch.equal(student[0].weight, other[0].weight)


def test_a_student_takes_nothing_over_but_the_architecture(teacher, data):
    images, compressed = data.train.images, cl.zero_pruning.prune(copy.deepcopy(teacher).half().train(), 0.7)
    for weight in compressed.parameters():
        weight.requires_grad_(False)
    random = torch.get_rng_state()
    student = student_of(compressed, images, 0.5)
    assert torch.equal(torch.get_rng_state(), random)
    fresh = student_of(teacher, images, 0.5)
    assert all(torch.equal(one, two) for one, two in zip(student.parameters(), fresh.parameters(), strict=True))
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in student.parameters())
    assert student.training and not fresh.training
    assert cl.layers.get_mask(compressed[0]) is not None and compressed[0].weight.dtype == torch.float16


@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 8, "images": torch.randn(30, 8)}], ids=["weights", "both"])
def test_a_quantized_teacher_has_an_ordinary_student(options, teacher, data):
    quantized = cl.quantization.quantize(teacher, **options)
    student, plain = (student_of(net, data.train.images, 0.5) for net in (quantized, teacher))
    assert torch.equal(cl.train.evaluate(student, data.test), cl.train.evaluate(plain, data.test))
    assert distill(student, quantized, data.train, steps=2, **QUIET) is not student


def test_normalisation_begins_anew_in_a_student():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    teacher(torch.rand(9, 1, 6, 6))
    student = student_of(teacher, torch.rand(2, 1, 6, 6), 0.5)
    assert student[1].running_mean.tolist() == [0] * 4 and student[1].weight.tolist() == [1] * 4
    assert teacher[1].num_batches_tracked == 1 and student[1].num_batches_tracked == 0


class Words(nn.Module):
    """Embedding, LSTM, two linear layers; integer inputs."""

    def __init__(self, hidden=8):
        super().__init__()
        self.words, self.memory = nn.Embedding(20, 6), nn.LSTM(6, 8, batch_first=True)
        self.hidden, self.head = nn.Linear(8, hidden), nn.Linear(hidden, 3)

    def forward(self, inputs):
        return self.head(self.hidden(self.memory(self.words(inputs.long()))[0][:, -1]).relu())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.two.weight = self.one.weight

    def forward(self, images):
        return self.head(self.three(self.two(self.one(images).relu()).relu()).relu())


FOREIGN = {
    "resnet": (NarrowResNet, torch.rand(4, 3, 32, 32)),
    "mobilenet": (narrow_mobilenet, torch.rand(4, 3, 32, 32)),
    "words": (Words, torch.arange(36).view(4, 9).float() % 20),
    "tied": (Tied, torch.rand(4, 8)),
}


@pytest.mark.filterwarnings("ignore:distillation leaves alone")
@pytest.mark.parametrize("make, images", FOREIGN.values(), ids=FOREIGN.keys())
def test_networks_of_other_makes(make, images):
    teacher, labels = make().eval(), torch.arange(4) % 3
    student = student_of(teacher, images, 0.25)
    assert cl.layers.count_parameters(student) < cl.layers.count_parameters(teacher)
    for kind in distillation_losses.KNOWLEDGE:
        tuned = distill(student, teacher, (images, labels), knowledge=kind, steps=1, batch_size=4, **QUIET)
    into = None if make is not Words else student_of(teacher, images, 0.25, seed=9)
    loaded = cl.storage.loads(cl.storage.dumps(tuned), into=into)
    assert torch.allclose(cl.train.evaluate(loaded, images), cl.train.evaluate(tuned, images), atol=1e-6)


def test_a_transformer_teaches_a_student_of_another_kind():
    torch.manual_seed(0)
    tiny = {"image_size": 16, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    teacher = torchvision.models.VisionTransformer(**tiny, num_classes=3)
    student = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.ReLU(), nn.Linear(4, 3))
    images, labels = torch.rand(6, 3, 16, 16), torch.arange(6) % 3
    for kind in distillation_losses.KNOWLEDGE:
        assert distill(student, teacher, (images, labels), knowledge=kind, steps=1, batch_size=6, **QUIET)
    with pytest.warns(UserWarning, match="distillation leaves alone"):
        narrower = student_of(teacher, images, 0.5)
    assert not torch.equal(narrower.encoder.pos_embedding, teacher.encoder.pos_embedding)


def test_what_keeps_its_width_is_named():
    with pytest.warns(UserWarning, match="distillation leaves alone .*memory"):
        student = student_of(Words(), torch.zeros(2, 5), 0.5)
    assert (student.memory.hidden_size, student.hidden.out_features) == (8, 4)


BAD = {
    "temperature 0": ({"temperature": 0}, "temperature is 0; give a number above 0"),
    "temperature text": ({"temperature": "hot"}, "temperature is 'hot'"),
    "temperature high": ({"temperature": 1e6}, "temperature is 1000000.0; give a number from 0 to 1000"),
    "alpha": ({"alpha": 2}, "alpha is 2; give a fraction"),
    "knowledge": ({"knowledge": "wisdom"}, "knowledge is 'wisdom'; choose one of 'response', 'feature', 'relation'"),
    "label_smoothing": ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
    "seed": ({"seed": -1}, "seed is -1"),
    "hint": ({"hint": "fc9", "knowledge": "relation"}, "hint is 'fc9', which the student does not have; choose from 0"),
    "hints": ({"hint": ("0", "9"), "knowledge": "feature"}, "hint is '9', which the teacher does not have"),
    "three hints": ({"hint": ("0", "1", "2")}, r"hint is \('0', '1', '2'\); give a layer's name, or a pair"),
    "steps and epochs": ({"steps": 3, "epochs": 1}, "give one of the two"),
}  # fmt: skip


@pytest.mark.parametrize("options, said", BAD.values(), ids=BAD.keys())
def test_a_bad_setting_is_named_before_training(options, said, teacher, data):
    with pytest.raises(ValueError, match=said):
        distill(network(8, 6, 3), teacher, data.train, **options)


class Odd(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer, self.layer = answer, nn.Linear(8, 3)

    def forward(self, images):
        return self.answer(self.layer(images))


BAD_TEACHERS = {
    "classes": (lambda: network(8, 4, 5), "student has 3 classes and the teacher 5"),
    "probabilities": (lambda: Odd(lambda logits: logits.softmax(1)), "teacher returns probabilities.*give logits"),
    "tuple": (lambda: Odd(lambda logits: (logits, 1)), "teacher: the model returned tuple"),
    "features": (lambda: Odd(lambda logits: logits[..., None]), r"teacher: the model returned \(2, 3, 1\)"),
    "one number": (lambda: network(8, 4, 1), "teacher returns one number for each image"),
    "nan": (lambda: Odd(lambda logits: logits * math.nan), "not finite"),
    "other images": (lambda: network(5, 4, 3), "teacher: the model does not take images"),
    "none": (lambda: None, "teacher is None; give a torch.nn.Module"),
}


@pytest.mark.parametrize("make, said", BAD_TEACHERS.values(), ids=BAD_TEACHERS.keys())
def test_a_teacher_that_does_not_fit_is_refused(make, said, data):
    with pytest.raises(ValueError, match=said):
        distill(network(8, 6, 3), make(), data.train, steps=1)


def test_a_student_or_data_that_do_not_fit_are_refused(teacher, data):
    for nothing in ("small", None):
        with pytest.raises(ValueError, match=f"student is {nothing!r}"):
            distill(nothing, teacher, data.train)
    with pytest.raises(ValueError, match="labels go up to 7, the student has 3 classes"):
        distill(network(8, 6, 3), teacher, (data.train.images, data.train.labels + 5))
    with pytest.raises(ValueError, match="student= and images= as well"):
        loss(teacher, knowledge="feature")
    with pytest.raises(ValueError, match="give two networks with the same classes"):
        loss(teacher)(network(8, 6, 5), data.train.images, data.train.labels)
    with pytest.raises(ValueError, match="'unused', a layer that does not run"):
        distill(Pair(), teacher, data.train, knowledge="relation", hint=("unused", None))


@pytest.mark.parametrize("width", [0, -1, 1.5, math.nan, "0.5"])
def test_a_width_out_of_range_is_named(width, teacher, data):
    with pytest.raises(ValueError, match="width is"):
        student_of(teacher, data.train.images, width)


def test_a_teacher_that_cannot_be_narrower_keeps_its_width_and_that_is_said(data):
    with pytest.warns(UserWarning, match=r"distillation leaves alone 0 \("):
        assert student_of(nn.Sequential(nn.Linear(8, 3)), data.train.images, 0.5)[0].weight.shape == (3, 8)
    assert student_of(nn.Sequential(nn.Linear(8, 3)), data.train.images, 1)[0].weight.shape == (3, 8)
    with pytest.raises(ValueError, match="images is None"):
        student_of(network(8, 4, 3), None, 0.5)


def prepared(teacher, data, seed=0, **setting):
    student = distillation.student(teacher, data.train.images[:2], seed=seed, **setting)
    return student, *distillation.training(teacher, student, data.train, setting, seed)


def test_a_share_of_the_images_is_drawn_with_every_class(teacher, data):
    drawn = {}
    for share in (1e-9, 0.1, 0.5, 1.0):
        _, split, _ = prepared(teacher, data, share=share, alpha=0.0)
        counts = torch.bincount(split.labels, minlength=3)
        assert counts.sum() == max(3, round(share * len(data.train))) and counts.max() - counts.min() <= 1
        drawn[share] = split
    assert drawn[1.0] is data.train
    images = [prepared(teacher, data, seed=seed, share=0.1, alpha=0.0)[1].images for seed in (0, 0, 1)]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_the_fair_controls_train_the_same_student_on_the_same_images(teacher, data):
    chosen = {"share": 0.3, "width": 0.5, "temperature": 2.0}
    runs = [prepared(teacher, data, **chosen | fair) for fair in ({}, *distillation.TECHNIQUE.fair_controls.values())]
    assert all(torch.equal(runs[0][0][0].weight, student[0].weight) for student, *_ in runs)
    assert all(torch.equal(runs[0][1].images, split.images) for _, split, _ in runs)
    _, split, without = runs[1]
    assert without(teacher, split.images, split.labels).item() == pytest.approx(
        functional.cross_entropy(teacher(split.images), split.labels).item()
    )
    _, split, smoothed = runs[2]
    assert smoothed(teacher, split.images, split.labels).item() == pytest.approx(
        functional.cross_entropy(teacher(split.images), split.labels, label_smoothing=0.1).item()
    )


def test_the_technique_checks_all_its_settings(teacher, data):
    for setting in ({"share": 0}, {"share": 2}, {"temperature": 0}, {"alpha": 2}, {"width": 0}, {"knowledge": "x"}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))} is"):
            distillation.student(teacher, data.train.images, **setting)


def controlled():
    for control in distillation.TECHNIQUE.controls:
        for value in control.choices or (control.low, control.high):
            yield {control.name: value}


@pytest.mark.parametrize("setting", list(controlled()), ids=str)
def test_both_ends_of_every_control_in_a_sweep(setting, teacher, data):
    setting = {control.name: control.default for control in distillation.TECHNIQUE.controls} | setting
    (result,) = cl.sweep.run("distillation", teacher, data, [setting], steps=2, journal=False, bar=False)
    assert result.stage == "retrained" and 0 <= result.accuracy <= 1 and result.file_bytes > 0


@pytest.mark.parametrize("name", cl.models.names())
@pytest.mark.parametrize("width", [0.02, 1.0])
def test_both_ends_of_the_width_on_the_reference_networks(name, width):
    student = distillation.student(cl.models.build(name, seed=0), torch.rand(2, 1, 28, 28), width=width)
    assert student(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_a_sweep_gives_the_same_number_again(teacher, data):
    runs = [
        next(cl.sweep.run("distillation", teacher, data, {"share": [0.5]}, steps=9, journal=False, bar=False))
        for _ in range(2)
    ]
    assert runs[0].accuracy == runs[1].accuracy and runs[0].key == runs[1].key


def pictures(teacher, data, **setting):
    student = distillation.student(teacher, data.train.images[:2], **setting)
    return cl.techniques.pictures(distillation.TECHNIQUE, teacher, student, setting, data)


def test_the_picture_shows_the_teachers_soft_targets(teacher, data):
    targets, size = pictures(teacher, data, temperature=5.0)
    assert (targets.kind, targets.values.shape, targets.classes) == ("targets", (7, 3), ("0", "1", "2"))
    with torch.no_grad():
        logits = teacher(data.test.images)
    sure = logits.softmax(1).amax(1)
    unsure = sure.argsort(stable=True)[:6]
    assert targets.values[1:] == pytest.approx((logits[unsure] / 5).softmax(1).numpy(), abs=1e-6)
    assert targets.labels[1:] == tuple(str(label) for label in data.test.labels[unsure].tolist())
    assert targets.values[0] == pytest.approx(
        (logits[sure.argsort(stable=True)[len(sure) // 2]] / 5).softmax(0).numpy()
    )
    assert targets.images is None  # a table of 8 numbers is no image
    assert size.kind == "bars" and size.values.tolist() == [32, 8, 6] and size.labels == ("0", "2", "4")


def test_the_picture_follows_the_teachers_weights(teacher, data):
    teacher = copy.deepcopy(teacher)
    before = pictures(teacher, data)[0]
    assert np.array_equal(before.values, pictures(teacher, data)[0].values)
    with torch.no_grad():
        teacher[4].weight.neg_()
    assert not np.array_equal(before.values, pictures(teacher, data)[0].values)


def test_of_many_classes_those_that_matter_are_shown():
    images, labels = torch.rand(240, 3, 4, 4), torch.arange(240) % 30
    data = cl.data.from_tensors(images, labels, seed=0)
    targets, _ = pictures(nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.ReLU(), nn.Linear(9, 30)), data)
    assert targets.values.shape == (7, 10) and len(targets.classes) == 10
    assert targets.images.shape == (7, 4, 4) and 0 <= targets.images.min() <= targets.images.max() <= 1


def test_it_helps_where_images_are_few():
    """500 images of MNIST: a student with a teacher beats the same one without, on the validation images."""
    data, teacher = cl.data.load("mnist"), cl.models.pretrained("lenet_300_100", "mnist")
    grid = [{"alpha": alpha, "share": 0.01, "width": 0.3} for alpha in (0.0, 0.9)]
    found = list(
        cl.sweep.run("distillation", teacher, data, grid, steps=150, precision="fp32", journal=False, bar=False)
    )
    assert found[1].accuracy > found[0].accuracy + 0.01


def test_a_teacher_that_writes_into_its_images_spoils_nothing(data):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    tame = nn.Sequential(nn.ReLU(), *teacher[1:])
    student, split = network(8, 6, 3), (data.train.images.clone(), data.train.labels)
    values = [loss(net, knowledge="relation")(student, *split) for net in (teacher, tame)]
    assert torch.equal(*values) and torch.equal(split[0], data.train.images)
    values[0].backward()


@pytest.mark.filterwarnings("ignore:distillation leaves alone")
def test_a_teacher_of_words_and_a_student_without_an_embedding():
    inputs, labels = torch.arange(36).view(4, 9) % 20, torch.arange(4) % 3
    student = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3))
    teacher = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 3))
    for kind in distillation_losses.KNOWLEDGE:
        assert distill(student, teacher, (inputs, labels), knowledge=kind, steps=2, batch_size=4, **QUIET)
        assert distill(teacher, student, (inputs, labels), knowledge=kind, steps=2, batch_size=4, **QUIET)
    assert student_of(teacher, inputs, 0.5)[2].out_features == 3
