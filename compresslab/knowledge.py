"""What a student takes over from its teacher: three kinds of knowledge, and the loss in which they meet the labels.

    loss = alpha * knowledge + (1 - alpha) * cross entropy

Sources: Hinton, Vinyals, Dean 2015, arXiv:1503.02531 (responses, temperature); Romero et al. 2014, arXiv:1412.6550
(FitNets: features, through a hint layer); Park et al. 2019, arXiv:1904.05068 (relations).
"""

import contextlib
import math

import torch
from torch import nn
from torch.nn import functional

from compresslab import activations, checks, layers, train
from compresslab.data import Split

KNOWLEDGE = ("response", "feature", "relation")
HOTTEST = 1000  # temperature beyond which float32 logits are all alike
DISTANCE, ANGLE = 1.0, 2.0  # weights of the two relations, of Park et al.
ENDS, VERTICES = 128, 48  # images of a batch that distances and angles are taken between: ENDS**2 and VERTICES**3
REMEMBERED = 5000  # images whose answers are remembered, rather than asked for at every step
LARGEST = 2**24  # numbers that a regressor, or the differences between features, may hold
HALF = (torch.float16, torch.bfloat16)
WHOSE = ("student", "teacher")


def loss(
    teacher,
    temperature=4.0,
    alpha=0.9,
    knowledge="response",
    *,
    label_smoothing=0.0,
    hint=None,
    student=None,
    images=None,
    seed=0,
):
    """A loss for `train.fit`, in which a copy of the teacher lives: loss(model, images, labels) -> scalar tensor.

    teacher          nn.Module that returns logits (N, classes); its copy answers in evaluation mode, without gradients,
                     where the student is
    temperature      above 0 to 1000: both softmaxes of "response" are taken of logits / temperature
    alpha            0 to 1, the share of the teacher; at 0 it is not asked, at 1 the labels are not
    knowledge        "response": `response_loss` of the logits; "feature": `feature_loss` of the hint layers' features,
                     the student's through a linear regressor; "relation": `relation_loss` of the hint layers' features
    label_smoothing  0 to 1, of the cross entropy with the labels
    hint             the layer whose output counts as features: None for what goes into the last weight layer that
                     runs, a module's name, or a pair of names, the student's and the teacher's
    student, images  the network to be trained and a few images: given, everything is checked at once. "feature" needs
                     them, because the regressor's size depends on both networks
    seed             of the regressor's first weights
    returns          an nn.Module; its only parameters are the regressor's, the teacher is no part of it
    raises           ValueError naming what is out of range, a teacher or student that does not return logits of the
                     same classes, and a hint layer that is not there
    """
    check_setting(temperature, alpha, knowledge, label_smoothing)
    checks.integer("seed", seed, 0)
    checks.module("teacher", teacher)
    made = Loss(teacher, float(temperature), float(alpha), knowledge, float(label_smoothing), _pair_of_hints(hint))
    if student is not None:
        made.prepare(student, images, seed)
    elif made.asks and knowledge == "feature":
        raise ValueError('knowledge "feature" sizes its regressor by both networks; give student= and images= as well')
    return made


def response_loss(logits, teacher_logits, temperature=4.0):
    """Divergence of softened answers: T**2 * KL(softmax(teacher / T) || softmax(student / T)), in nats.

    logits, teacher_logits  (batch, classes); the mean over the batch is taken
    returns                 scalar tensor

    T**2 keeps its gradient, which falls as 1 / T**2, comparable to that of the labels. Hinton et al. 2015, section 2.
    """
    student = functional.log_softmax(logits / temperature, 1)
    teacher = functional.log_softmax(teacher_logits / temperature, 1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def feature_loss(features, teacher_features):
    """Mean squared error between two tensors of one shape, relative to the mean square of the teacher's.

    0 where they are equal, 1 where `features` are zeros. Romero et al. 2014, equation 3, less its scale.
    """
    scale = teacher_features.square().mean()
    return functional.mse_loss(features, teacher_features) / torch.where(scale > 0, scale, 1.0)


def relation_loss(features, teacher_features):
    """How differently two networks place the same images: distances and angles between their features.

    features, teacher_features  (batch, …), each flattened; their lengths may differ
    returns                     Huber(distances / their mean) + 2 * Huber(cosines of the angles in all triangles);
                                of a batch, the first 128 images have distances, the first 48, or fewer, angles

    Park et al. 2019, equations 4 to 9.
    """
    features, teacher_features = features[:ENDS].flatten(1), teacher_features[:ENDS].flatten(1)
    distance = functional.smooth_l1_loss(_distances(features), _distances(teacher_features))
    width = max(features.shape[1], teacher_features.shape[1])
    few = max(3, min(VERTICES, math.isqrt(LARGEST // max(1, width))))
    angle = functional.smooth_l1_loss(_cosines(features[:few]), _cosines(teacher_features[:few]))
    return DISTANCE * distance + ANGLE * angle


class Loss(nn.Module):
    """What `loss` returns; the arguments as there, checked.

    regressor  nn.Linear from the student's features to the teacher's, for knowledge "feature"; else None
    classes    number of classes, once it is prepared
    asks       whether the teacher is asked at all
    """

    def __init__(self, teacher, temperature, alpha, knowledge, label_smoothing, hints):
        super().__init__()
        self.temperature, self.alpha, self.knowledge = temperature, alpha, knowledge
        self.label_smoothing, self.asks = label_smoothing, alpha > 0
        self.regressor = self.classes = self._places = None
        self._hints, self._table = hints, None
        self._teacher = (ordinary(teacher).eval().requires_grad_(False),)  # in a tuple it is no submodule

    def prepare(self, student, images, seed=0):
        """Check that the two networks fit, find their hint layers, make the regressor between them."""
        checks.module("student", student)
        images = activations.checked_images(images)[:2]
        self.classes = _check_answers(student, *self._teacher, images)
        self._find(student, images)
        if self.asks and self.knowledge == "feature":
            mine, theirs = _aligned(*map(_features, (student, *self._teacher), (images, images), self._places))
            self.regressor = _regressor(mine.shape[-1], theirs.shape[-1], seed).to(mine)

    def remember(self, split, most=REMEMBERED):
        """Ask the teacher once about each of a few images, of a prepared loss; many are asked about as they come.

        most     images that count as few
        returns  the Split to train on: its labels are the positions of the images, by which the answers are found
        """
        if not self.asks or len(split) > most:
            return split
        device = _first_weight(*self._teacher).device
        told, features = [], []
        for images in split.images.split(250):
            logits, found = self._ask(images.to(device))
            told.append(logits)
            features += [] if self._places[1] is None else [_last(found, self._places[1])]
            if features and features[0][0].numel() * len(split) > LARGEST:
                return split
        features = torch.cat(features) if features else None
        self._table = [split.labels.to(device), torch.cat(told), features]
        return Split(split.images, torch.arange(len(split), device=split.labels.device))

    def forward(self, model, images, labels):
        """The loss of a batch, the model in whatever mode it is in."""
        if self._places is None:
            self._find(model, images[:2])
        told = their_features = None
        if self._table is not None:
            labels, told, their_features = self._look_up(labels)
        elif self.asks:
            told, their_features = self._ask(images)
        with _caught(model, self._places[0]) as features:
            logits = model(images)
        knowledge = self._knowledge(logits, features, told, their_features) if self.asks else None
        if self.alpha == 1:
            return knowledge
        task = functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return self.alpha * knowledge + (1 - self.alpha) * task if self.asks else task

    def _knowledge(self, logits, features, told, their_features):
        """The part of the loss that alpha weighs, of the logits and features of both."""
        if told.shape != logits.shape:
            shapes = f"{tuple(told.shape)}, the student {tuple(logits.shape)}"
            raise ValueError(f"teacher returns {shapes}; give two networks with the same classes")
        with torch.autocast(logits.device.type, enabled=False):
            if self.knowledge == "response":
                return response_loss(_full(logits), told.to(_full(logits)), self.temperature)
            mine = _last(features, self._places[0])
            theirs = _last(their_features, self._places[1]).to(mine)
            if self.knowledge == "relation":
                return relation_loss(mine, theirs)
            mine, theirs = _aligned(mine, theirs)
            return feature_loss(self.regressor(mine), theirs)

    def _look_up(self, positions):
        """Labels, the teacher's logits and list of features of remembered images."""
        if self._table[0].device != positions.device:
            self._table = [values if values is None else values.to(positions.device) for values in self._table]
        labels, told, features = self._table
        return labels[positions], told[positions], [] if features is None else [features[positions]]

    def _ask(self, images):
        """The teacher's logits and list of features for a batch, detached, where the batch is."""
        (teacher,) = self._teacher
        if _first_weight(teacher).device != images.device:
            teacher.to(images.device)
        images = layers.as_inputs(
            teacher, images.clone(), images.device
        )  # its layers may write into what they are given
        with torch.no_grad(), _caught(teacher, self._places[1]) as features:
            return activations.run(teacher, images), features

    def _find(self, student, images):
        """Find both hint layers."""
        if not self.asks or self.knowledge == "response":
            self._places = (None, None)
            return
        found = map(_place, (student, *self._teacher), (images, images), self._hints, WHOSE)
        self._places = tuple(found)


def ordinary(model):
    """A copy of a model with ordinary parameters (masks and grids baked in), none of them in half precision."""
    twin = layers.plain(model)
    return twin.float() if any(weight.dtype in HALF for weight in twin.parameters()) else twin


@contextlib.contextmanager
def seeded(seed):
    """torch's global generator seeded, and put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def check_setting(temperature, alpha, knowledge, label_smoothing):
    """Raise ValueError for a setting of `loss` that is out of range."""
    if not checks.real("temperature", temperature, 0, HOTTEST) > 0:
        raise ValueError(f"temperature is {temperature!r}; give a number above 0 (1 is the plain softmax)")
    checks.fraction("alpha", alpha)
    checks.choice("knowledge", knowledge, KNOWLEDGE)
    checks.fraction("label_smoothing", label_smoothing)


def check_labels(split, objective):
    """Raise ValueError for labels beyond the classes that a prepared `Loss` has, unless it asks the teacher alone."""
    highest, classes = int(split.labels.max()), objective.classes
    if highest >= classes and objective.alpha < 1:
        raise ValueError(f"labels go up to {highest}, the student has {classes} classes (0 to {classes - 1})")


def _check_answers(student, teacher, images):
    """Number of classes that two networks answer in; raises ValueError where these are no logits, or not alike."""
    mine, theirs = map(_answers, (student, teacher), (images, images), WHOSE)
    with _said_of("student"):
        train.check_takes(student, images)
    if mine.shape != theirs.shape:
        counts = f"{mine.shape[1]} classes and the teacher {theirs.shape[1]}"
        raise ValueError(f"student has {counts}; give two networks with the same classes")
    if not theirs.isfinite().all():
        raise ValueError("teacher returns logits that are not finite (nan or inf)")
    if (theirs >= 0).all() and (theirs.sum(1) - 1).abs().max() < 1e-4:
        raise ValueError("teacher returns probabilities, which sum to 1; give logits, its outputs before the softmax")
    return mine.shape[1]


def _answers(model, images, whose):
    with _said_of(whose):
        logits = train.evaluate(model, images)
    if logits.shape[1] < 2:
        raise ValueError(f"{whose} returns one number for each image; give logits of two classes or more")
    return logits


@contextlib.contextmanager
def _said_of(whose):
    """Say in a ValueError which of the two networks it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{whose}: {error}") from error


def _full(values):
    """Values in single precision at least."""
    return values.float() if values.dtype in HALF else values


def _first_weight(model):
    return next((one for one in model.parameters() if one.is_floating_point()), torch.empty(0))


def _regressor(inputs, outputs, seed):
    if inputs * outputs > LARGEST:
        raise ValueError(f"hint layers have {inputs} and {outputs} features; choose some with fewer of them (hint=…)")
    with seeded(seed):
        return nn.Linear(inputs, outputs)


def _distances(features):
    """Distances between all rows (batch, batch), relative to their mean."""
    centred = features - features.mean(0)
    squares = centred.square().sum(1)
    squared = squares[:, None] + squares[None] - 2 * centred @ centred.T
    apart = ~torch.eye(len(features), dtype=torch.bool, device=features.device)
    distances = squared.clamp(min=1e-12).sqrt() * apart
    return distances / (distances.sum() / apart.sum().clamp(min=1)).clamp(min=1e-6)


def _cosines(features):
    """Cosine of the angle at row i between rows j and k (batch, batch, batch); 0 where two of them are the same."""
    away = functional.normalize(features[None] - features[:, None], dim=2)  # (vertex, other end, features)
    return away @ away.transpose(1, 2)


def _aligned(mine, theirs):
    """Two layers' features with what a linear layer can map, the channels, last.

    The same positions in both ((batch, channels, height, width), or (batch, tokens, channels)) are mapped alike;
    where they differ, everything is flattened.
    """
    if mine.dim() == theirs.dim() > 2 and mine.shape[2:] == theirs.shape[2:]:
        return mine.movedim(1, -1), theirs.movedim(1, -1)
    if mine.dim() == theirs.dim() > 2 and mine.shape[1:-1] == theirs.shape[1:-1]:
        return mine, theirs
    return mine.flatten(1), theirs.flatten(1)


def _pair_of_hints(hint):
    """`hint` as two names, the student's and the teacher's, each a text or None."""
    pair = tuple(hint) if isinstance(hint, (tuple, list)) else (hint, hint)
    if len(pair) != 2 or not all(name is None or isinstance(name, str) for name in pair):
        raise ValueError(f"hint is {checks.words(hint)}; give a layer's name, or a pair (the student's, the teacher's)")
    return pair


def _place(model, images, name, whose):
    """Where a model's features are: (module name, whether they go in there); the default is found by running it."""
    if name is not None:
        known = [known for known, _ in model.named_modules(remove_duplicate=False) if known]
        if name not in known:
            listed = ", ".join(known[:20]) + (" …" if len(known) > 20 else "")
            raise ValueError(f"hint is {name!r}, which the {whose} does not have; choose from {listed}")
        return name, False
    order = []
    watchers = {known: lambda *_, known=known: order.append(known) for known in layers.weight_layers(model)}
    activations.watch(model, images, watchers)
    if not order:
        raise ValueError(f"{whose} has no weight layer that runs; name the layer that gives its features (hint=…)")
    return order[-1], True


def _features(model, images, place):
    """The features of a few images, without gradients; the model's modes are kept."""
    with layers.modes_kept(model), torch.no_grad(), _caught(model, place) as features:
        activations.run(model.eval(), layers.as_inputs(model, images.clone()))
    return _last(features, place)


@contextlib.contextmanager
def _caught(model, place):
    """A list to which the features are added each time that the hint layer runs; nothing is, for place None."""
    features = []
    if place is None:
        yield features
        return
    name, goes_in = place
    handle = model.get_submodule(name).register_forward_hook(
        lambda _, inputs, output: features.append(inputs[0] if goes_in and inputs else output)
    )
    try:
        yield features
    finally:
        handle.remove()


def _last(features, place):
    """The features of the last time that the hint layer ran, (batch, …); of several outputs, the first."""
    if not features:
        raise ValueError(f"hint is {place[0]!r}, a layer that does not run when the model is called; choose another")
    last = features[-1]
    last = last[0] if isinstance(last, (tuple, list)) else last
    if not isinstance(last, torch.Tensor) or last.dim() < 2 or not last.is_floating_point():
        found = tuple(last.shape) if isinstance(last, torch.Tensor) else type(last).__name__
        raise ValueError(f"hint is {place[0]!r}, a layer that gives {found}; choose one with a tensor (batch, …)")
    return _full(last)
