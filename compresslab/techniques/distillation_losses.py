"""The losses of distillation: three kinds of knowledge, and the loss that combines them with the labels.

    loss = alpha * knowledge + (1 - alpha) * cross entropy

Sources: Hinton, Vinyals, Dean 2015, arXiv:1503.02531 (responses, temperature); Romero et al. 2014, arXiv:1412.6550
(FitNets: features, through a hint layer); Park et al. 2019, arXiv:1904.05068 (relations).
"""

import math

import torch
from torch import nn
from torch.nn import functional

from compresslab import calibration, checks, train
from compresslab.data import Split
from compresslab.weights import layers

KNOWLEDGE = ("response", "feature", "relation")
HOTTEST = 1000  # temperature beyond which float32 logits are all alike
DISTANCE, ANGLE = 1.0, 2.0  # weights of the two relations, of Park et al.
ENDS, VERTICES = 128, 48  # images of a batch that distances and angles are taken between: ENDS**2 and VERTICES**3
REMEMBERED = 5000  # images whose answers are remembered, rather than asked for at every step
LARGEST = 2**24  # numbers that a regressor, or the differences between features, may hold
HALF = (torch.float16, torch.bfloat16)


def loss(
    teacher: nn.Module,
    temperature: float = 4.0,
    alpha: float = 0.9,
    knowledge: str = "response",
    *,
    label_smoothing: float = 0.0,
    hint: str | tuple | None = None,
    student: nn.Module | None = None,
    images: torch.Tensor | None = None,
    seed: int = 0,
) -> "Loss":
    """Return a loss for `train.fit` with a teacher: loss(model, images, labels) -> scalar tensor.

    teacher          nn.Module that returns logits (N, classes); its copy answers in evaluation mode, without gradients
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
    returns          an nn.Module whose only parameters are the regressor's
    raises           ValueError naming what is out of range, a teacher or student that does not return logits of the
                     same classes, and a hint layer that is not there
    """
    check_setting(temperature, alpha, knowledge, label_smoothing)
    checks.integer("seed", seed, 0)
    checks.module("teacher", teacher)
    hints = tuple(hint) if isinstance(hint, (tuple, list)) else (hint, hint)
    if len(hints) != 2 or not all(name is None or isinstance(name, str) for name in hints):
        raise ValueError(f"hint is {checks.words(hint)}; give a layer's name, or a pair (the student's, the teacher's)")
    objective = Loss(teacher, float(temperature), float(alpha), knowledge, float(label_smoothing), hints)
    if student is not None:
        objective.prepare(student, images, seed)
    elif objective.asks and knowledge == "feature":
        raise ValueError('knowledge "feature" sizes its regressor by both networks; give student= and images= as well')
    return objective


def response_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 4.0) -> torch.Tensor:
    """Return T**2 * KL(softmax(teacher / T) || softmax(student / T)), in nats.

    logits, teacher_logits  (batch, classes); the mean over the batch is taken
    returns                 scalar tensor

    T**2 keeps its gradient, which falls as 1 / T**2, comparable to that of the labels. Hinton et al. 2015, section 2.
    """
    student = functional.log_softmax(logits / temperature, 1)
    teacher = functional.log_softmax(teacher_logits / temperature, 1)
    return temperature**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def feature_loss(features: torch.Tensor, teacher_features: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of features, relative to the mean square of the teacher's.

    0 where they are equal, 1 where `features` are zeros. Romero et al. 2014, equation 3, less its scale.
    """
    scale = teacher_features.square().mean()
    return functional.mse_loss(features, teacher_features) / torch.where(scale > 0, scale, 1.0)


def relation_loss(features: torch.Tensor, teacher_features: torch.Tensor) -> torch.Tensor:
    """Return how differently two networks place the same images: distances and angles between features.

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
    """The loss that `loss` returns; the arguments as there, checked.

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

    def prepare(self, student: nn.Module, images: torch.Tensor, seed: int = 0) -> None:
        """Check that the two networks fit, find their hint layers, make the regressor between them."""
        checks.module("student", student)
        images = calibration.checked_images(images, 2)
        self.classes = _check_answers(student, *self._teacher, images)
        self._find_places(student, images)
        if self.asks and self.knowledge == "feature":
            pairs = zip((student, *self._teacher), self._places, strict=True)
            seen = []
            for network, place in pairs:
                with layers.modes_kept(network), torch.no_grad():
                    inputs = layers.as_inputs(network, images.clone())
                    seen.append(_run_to_features(network.eval(), inputs, place)[1])
            features, targets = _align(*seen)
            inputs, outputs = features.shape[-1], targets.shape[-1]
            if inputs * outputs > LARGEST:
                message = f"hint layers have {inputs} and {outputs} features; choose layers with fewer (hint=…)"
                raise ValueError(message)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                self.regressor = nn.Linear(inputs, outputs).to(features)

    def remember(self, split: Split, most: int = REMEMBERED) -> Split:
        """Ask the teacher once about each image, where the images are few, `most` at most.

        returns  the Split to train on: its labels are the positions of the images, by which the answers are looked up
        """
        if not self.asks or len(split) > most:
            return split
        device = _first_weight(*self._teacher).device
        answers = []
        for images in split.images.split(250):
            answers.append(self._ask(images.to(device)))
            features = answers[0][1]
            if features is not None and features[0].numel() * len(split) > LARGEST:
                return split
        table = [torch.cat(parts) if parts[0] is not None else None for parts in zip(*answers, strict=True)]
        self._table = [split.labels.to(device), *table]
        return Split(split.images, torch.arange(len(split), device=split.labels.device))

    def forward(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch, the model in whatever mode it is in."""
        if self._places is None:
            self._find_places(model, images[:2])
        if self._table is not None:  # the labels are positions
            if self._table[0].device != labels.device:
                self._table = [None if values is None else values.to(labels.device) for values in self._table]
            labels, *answers = [None if values is None else values[labels] for values in self._table]
        else:
            answers = self._ask(images) if self.asks else ()
        logits, features = _run_to_features(model, images, self._places[0], nn.Module.__call__)
        knowledge = self._compare(logits, features, *answers) if self.asks else 0.0
        if self.alpha == 1:
            return knowledge
        task = functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return self.alpha * knowledge + (1 - self.alpha) * task if self.asks else task

    def _compare(self, logits, features, teacher_logits, teacher_features):
        """Return the part of the loss that alpha weighs."""
        if teacher_logits.shape != logits.shape:
            shapes = f"{tuple(teacher_logits.shape)}, the student {tuple(logits.shape)}"
            raise ValueError(f"teacher returns {shapes}; give two networks with the same classes")
        with torch.autocast(logits.device.type, enabled=False):
            if self.knowledge == "response":
                logits = _to_single(logits)
                return response_loss(logits, teacher_logits.to(logits), self.temperature)
            teacher_features = teacher_features.to(features)
            if self.knowledge == "relation":
                return relation_loss(features, teacher_features)
            features, teacher_features = _align(features, teacher_features)
            return feature_loss(self.regressor(features), teacher_features)

    def _ask(self, images):
        """Return the teacher's logits and features, or None, for a batch."""
        (teacher,) = self._teacher
        if _first_weight(teacher).device != images.device:
            teacher.to(images.device)
        images = layers.as_inputs(teacher, images.clone(), images.device)  # its layers may write into them
        with torch.no_grad():
            return _run_to_features(teacher, images, self._places[1])

    def _find_places(self, student, images):
        """Find both hint layers."""
        self._places = (None, None)
        if self.asks and self.knowledge != "response":
            places = zip((student, *self._teacher), self._hints, ("student", "teacher"), strict=True)
            self._places = tuple(_find_place(network, images, hint, role) for network, hint, role in places)


def ordinary(model: nn.Module) -> nn.Module:
    """Return a copy with masks and grids baked in, in single precision at least."""
    twin = layers.plain(model)
    return twin.float() if any(weight.dtype in HALF for weight in twin.parameters()) else twin


def check_setting(temperature: float, alpha: float, knowledge: str, label_smoothing: float) -> None:
    """Refuse a setting of `loss` that is out of range."""
    if not checks.real("temperature", temperature, 0, HOTTEST) > 0:
        raise ValueError(f"temperature is {temperature!r}; give a number above 0 (1 is the plain softmax)")
    checks.fraction("alpha", alpha)
    checks.choice("knowledge", knowledge, KNOWLEDGE)
    checks.fraction("label_smoothing", label_smoothing)


def check_targets(split: Split) -> None:
    """Refuse targets that are no class numbers: a teacher of classes has nothing to say about them."""
    labels = split.labels
    if labels.dim() != 1 or labels.is_floating_point():
        kind = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"labels are {kind}; distillation needs class numbers, (N,) int64")


def check_labels(split: Split, objective: Loss) -> None:
    """Refuse labels beyond the classes of a prepared `Loss`, unless it asks the teacher alone."""
    highest, classes = int(split.labels.max()), objective.classes
    if highest >= classes and objective.alpha < 1:
        raise ValueError(f"labels go up to {highest}, the student has {classes} classes (0 to {classes - 1})")


def _check_answers(student, teacher, images):
    """Return the number of classes; refuse answers that are no logits, or do not match."""
    answers = []
    for role, network in (("student", student), ("teacher", teacher)):
        try:
            answers.append(train.evaluate(network, images))
            if network is student:
                train.check_takes(student, images)
        except ValueError as error:
            raise ValueError(f"{role}: {error}") from error
        if answers[-1].shape[1] < 2:
            raise ValueError(f"{role} returns one number for each image; give logits of two classes or more")
    logits, teacher_logits = answers
    if logits.shape != teacher_logits.shape:
        counts = f"{logits.shape[1]} classes and the teacher {teacher_logits.shape[1]}"
        raise ValueError(f"student has {counts}; give two networks with the same classes")
    if not teacher_logits.isfinite().all():
        raise ValueError("teacher returns logits that are not finite (nan or inf)")
    if (teacher_logits >= 0).all() and (teacher_logits.sum(1) - 1).abs().max() < 1e-4:
        raise ValueError("teacher returns probabilities, which sum to 1; give logits, its outputs before the softmax")
    return logits.shape[1]


def _to_single(values):
    """Return values in single precision at least."""
    return values.float() if values.dtype in HALF else values


def _first_weight(model):
    return next((weight for weight in model.parameters() if weight.is_floating_point()), torch.empty(0))


def _distances(features):
    """Return the distances between all rows (batch, batch), relative to their mean."""
    centred = features - features.mean(0)
    squares = centred.square().sum(1)
    squared = squares[:, None] + squares[None] - 2 * centred @ centred.T
    apart = ~torch.eye(len(features), dtype=torch.bool, device=features.device)
    distances = squared.clamp(min=1e-12).sqrt() * apart
    return distances / (distances.sum() / apart.sum().clamp(min=1)).clamp(min=1e-6)


def _cosines(features):
    """Return the cosine of the angle at row i between rows j and k."""
    away = functional.normalize(features[None] - features[:, None], dim=2)  # (vertex, other end, features)
    return away @ away.transpose(1, 2)


def _align(features, teacher_features):
    """Return two layers' features with what a linear layer can map, the channels, last.

    The same positions in both (of pixels or tokens) are mapped alike; where they differ, everything is flattened.
    """
    if features.dim() == teacher_features.dim() > 2:
        if features.shape[2:] == teacher_features.shape[2:]:
            return features.movedim(1, -1), teacher_features.movedim(1, -1)
        if features.shape[1:-1] == teacher_features.shape[1:-1]:
            return features, teacher_features
    return features.flatten(1), teacher_features.flatten(1)


def _find_place(model, images, name, role):
    """Return the place of a model's features: (module name, whether they are its input)."""
    if name is not None:
        known = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
        if name not in known:
            choices = ", ".join(known[:20]) + (" …" if len(known) > 20 else "")
            raise ValueError(f"hint is {name!r}, which the {role} does not have; choose from {choices}")
        return name, False
    order = []
    watchers = {path: lambda *_, path=path: order.append(path) for path in layers.weight_layers(model)}
    calibration.watch(model, images, watchers)
    if not order:
        raise ValueError(f"{role} has no weight layer that runs; name the layer that gives its features (hint=…)")
    return order[-1], True


def _run_to_features(model, images, place, run=calibration.run):
    """Return what a model answers, and its features at a place, (batch, …), if any."""
    if place is None:
        return run(model, images), None
    (name, is_input), features = place, []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _, inputs, output: features.append(inputs[0] if is_input and inputs else output)
    )
    try:
        answer = run(model, images)
    finally:
        handle.remove()
    if not features:
        raise ValueError(f"hint is {name!r}, a layer that does not run when the model is called; choose another")
    last = features[-1][0] if isinstance(features[-1], (tuple, list)) else features[-1]
    if not isinstance(last, torch.Tensor) or last.dim() < 2 or not last.is_floating_point():
        actual = tuple(last.shape) if isinstance(last, torch.Tensor) else type(last).__name__
        raise ValueError(f"hint is {name!r}, a layer that gives {actual}; choose one with a tensor (batch, …)")
    return answer, _to_single(last)
