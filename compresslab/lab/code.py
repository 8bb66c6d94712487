"""Lines of Python that reproduce a measured point exactly, and the one line that reopens a lab in its state."""

from compresslab import techniques, trial
from compresslab.lab.session import YOURS

_MEASURED = ["    print(cl.measure.accuracy(small, data.validation), cl.storage.file_bytes(small))"]


def state(technique, choice):
    """One line: `cl.lab.explore("zero_pruning", model="lenet_300_100", data="mnist", setting={…}, steps=…, seed=…)`."""
    given = f"{_technique(technique)}, model={_name(choice.model, 'model')}, data={_name(choice.data, 'data')}"
    compare = f", compare={choice.compare!r}" if choice.compare else ""
    return f"cl.lab.explore({given}, setting={choice.setting!r}, steps={choice.steps}, seed={choice.seed}{compare})"


def reproduce(technique, choice, result):
    """Lines that print the accuracy (validation) and the file's bytes of a measured point.

    result  the point's Result: it says in which arithmetic, with which lr and batch size it was trained
    """
    lines = ["import compresslab as cl", "", f"data = {_load(choice)}", f"model = {_pretrained(choice)}"]
    if technique.source is not None:
        lines += [f"recipe = {technique.source(result.setting, result)}", "with cl.train.threads(1):"]
        lines += [f"    small = recipe.apply(model, data, seed={result.seed}, bar=False)", *_MEASURED]
        return "\n".join(lines)
    lines += _imports(technique)
    lines += ["with cl.train.threads(1):", f"    small = {_call(technique, choice, result)}"]
    if result.steps:
        training = {"steps": result.steps, "seed": result.seed}
        training |= {} if result.lr is None else {"lr": result.lr}
        training |= {"batch_size": result.batch_size, "precision": result.precision, "bar": False}
        split = "data.train"
        if technique.training:
            split = "split"
            owner = f"cl.{technique.name}.TECHNIQUE" if _packaged(technique) else "technique"
            lines += [
                f"    setting = dict({_keywords(result.setting)})",
                f"    split, loss = {owner}.training(model, small, data.train, setting, {result.seed})",
            ]
        lines += [
            f"    training = dict({_keywords(training)}{', loss=loss' if technique.training else ''})",
            f"    small = cl.train.finetune(small, {split}, **training)",
        ]
    return "\n".join([*lines, *_MEASURED])


def _technique(technique):
    if technique.source is not None:
        return " ".join(technique.source().split())
    return repr(technique.name) if _packaged(technique) else "technique"


def _packaged(technique):
    """Whether the technique is the package's own, found again by its name."""
    return technique.name in techniques.names() and techniques.get(technique.name) is technique


def _name(name, own):
    return own if name == YOURS else repr(name)


def _load(choice):
    return "...  # your Data" if choice.data == YOURS else f"cl.data.load({choice.data!r})"


def _pretrained(choice):
    if choice.model == YOURS:
        return "...  # your model"
    return f"cl.models.pretrained({choice.model!r}, data.name)"


def _imports(technique):
    return [] if _packaged(technique) else ["technique = ...  # your Technique"]


def _call(technique, choice, result):
    """The call of the technique's function, as the sweep makes it."""
    function = f"cl.{technique.name}.{technique.apply.__name__}" if _packaged(technique) else "technique.apply"
    setting = dict(result.setting)
    if trial.takes_seed(technique):
        setting.setdefault("seed", result.seed)
    images = f"data.train.images[:{technique.calibration}], " if technique.calibration else ""
    return f"{function}(model, {images}{_keywords(setting)})"


def _keywords(values):
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
