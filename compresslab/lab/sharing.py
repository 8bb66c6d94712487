"""Write what a person takes away from a lab: lines of Python, and a CSV file."""

import base64
import html
import itertools
import json
import re
import zlib
from pathlib import Path

import pandas as pd
from ipywidgets import HTML

from compresslab import techniques
from compresslab.experiments import journal, trial
from compresslab.lab.measurements import YOURS, Choice
from compresslab.techniques import Technique


def write_state(technique: Technique, choice: Choice) -> str:
    """Return `cl.lab.explore("zero_pruning", model="lenet_300_100", data="mnist", setting={…}, steps=…, seed=…)`."""
    name = repr(technique.name) if _is_packaged(technique) else "technique"
    if technique.source is not None:
        name = " ".join(technique.source().split())
    model = "model" if choice.model == YOURS else repr(choice.model)
    data = "data" if choice.data == YOURS else repr(choice.data)
    training = f"steps={choice.steps}, seed={choice.seed}"
    compare = f", compare={choice.compare!r}" if choice.compare else ""
    return f"cl.lab.explore({name}, model={model}, data={data}, setting={choice.setting!r}, {training}{compare})"


def write_short_code(technique: Technique, choice: Choice) -> str:
    """Return a lab's state as one word for `read_short_code`.

    raises  ValueError for a technique that is not one of the package's, which a neighbour does not have
    """
    if not _is_packaged(technique):
        raise ValueError(f"technique is {technique.name!r}, not one of the package's; share its code instead")
    state = [technique.name, choice.model, choice.data, choice.setting, choice.steps, choice.seed, choice.compare]
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode().rstrip("=")


def write_open(technique: Technique, choice: Choice) -> str:
    """Return the call of `cl.lab.open` for a lab's state, or the reason why there is none."""
    try:
        word = write_short_code(technique, choice)
    except ValueError as error:
        return str(error)
    arguments = [f"{name}={name}" for name in ("model", "data") if getattr(choice, name) == YOURS]
    return f"cl.lab.open({', '.join([repr(word), *arguments])})"


def read_short_code(word: str) -> dict:
    """Return the arguments of `explore` that a short code stands for; "yours" for a model or data of a person's own.

    raises  ValueError for a word that is no such code
    """
    try:
        content = base64.urlsafe_b64decode(word.strip() + "=" * (-len(word.strip()) % 4))
        state = json.loads(zlib.decompressobj().decompress(content, 10_000))
        names = ("technique", "model", "data", "setting", "steps", "seed", "compare")
        return dict(zip(names, state, strict=True))
    except (AttributeError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"code is {word!r}; give the word that a lab's *show the code* prints") from error


def write_code(technique: Technique, choice: Choice, result: journal.Result) -> str:
    """Return lines that print the validation accuracy and the file's bytes of a measured point.

    result  the point's Result: it says in which arithmetic, with which lr and batch size it was trained
    """
    data = "...  # your Data" if choice.data == YOURS else f"cl.data.load({choice.data!r})"
    pretrained = f"cl.models.pretrained({choice.model!r}, data.name)"
    model = "...  # your model" if choice.model == YOURS else pretrained
    lines = ["import compresslab as cl", "", f"data = {data}", f"model = {model}"]
    if technique.source is not None:
        lines += [f"recipe = {technique.source(result.setting, result)}", "with cl.train.threads(1):"]
        lines += [f"    small = recipe.apply(model, data, seed={result.seed}, bar=False)"]
    else:
        lines += [] if _is_packaged(technique) else ["technique = ...  # your Technique"]
        # The call of the technique's function, as the sweep makes it.
        name = f"cl.{technique.name}.{technique.apply.__name__}" if _is_packaged(technique) else "technique.apply"
        setting = ({"seed": result.seed} if trial.takes_seed(technique) else {}) | result.setting
        images = f"data.train.images[:{technique.calibration}], " if technique.calibration else ""
        lines += ["with cl.train.threads(1):", f"    small = {name}(model, {images}{_write_keywords(setting)})"]
        lines += _write_training(technique, result) if result.steps else []
    lines += ["    print(cl.measure.accuracy(small, data.validation), cl.storage.file_bytes(small))"]
    return "\n".join(lines)


def _is_packaged(technique):
    """Return whether the technique is the package's own, which its name finds again."""
    return technique.name in techniques.names() and techniques.get(technique.name) is technique


def _write_training(technique, result):
    """Return the lines that retrain as the sweep does."""
    names = ("steps", "seed", "lr", "batch_size", "precision")
    training = {name: getattr(result, name) for name in names if getattr(result, name) is not None} | {"bar": False}
    keywords, split, lines = _write_keywords(training), "data.train", []
    if technique.training is not None:
        owner = f"cl.{technique.name}.TECHNIQUE" if _is_packaged(technique) else "technique"
        call = f"{owner}.training(model, small, data.train, setting, {result.seed})"
        lines = [f"    setting = dict({_write_keywords(result.setting)})", f"    split, loss = {call}"]
        split, keywords = "split", f"{keywords}, loss=loss"
    return [*lines, f"    training = dict({keywords})", f"    small = cl.train.finetune(small, {split}, **training)"]


def _write_keywords(values):
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def export(results: pd.DataFrame, name: str, note: HTML) -> None:
    """Write results to compresslab-NAME.csv in the working folder, never over an older file.

    note    the widget that shows the file's place, and a link that downloads the same
    raises  OSError naming the path if it cannot be written
    """
    name = re.sub(r"[^\w.-]+", "-", name)  # that of a recipe has arrows
    endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    paths = (Path.cwd() / f"compresslab-{name}{ending}.csv" for ending in endings)
    path = journal.write_csv(results, next(path for path in paths if not path.exists()))
    packed = base64.b64encode(results.to_csv(index=False).encode()).decode()
    link = f"<a download='{html.escape(path.name)}' href='data:text/csv;base64,{packed}'>download</a>"
    note.value = f"{len(results)} rows written to {html.escape(str(path))} · {link}"
