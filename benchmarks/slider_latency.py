"""How long a person waits after moving a slider, seen from the browser: JupyterLab, Chromium, keyboard, 30 moves.

    python -m benchmarks.slider_latency [--moves 30] [--techniques zero_pruning low_rank …]
                                        [--models lenet_300_100 article_mlp]

first picture    from the key press to the first changed picture on the screen
retrained point  from the key press to the status line with the point retrained and measured on 10,000 images
whole curve      seconds of idling, from a point measured alone, until the curve through it is filled in
another widget   from a key press on another slider to its label, while a long retraining runs

Moved is the slider that the lab's curve runs along. Every move is to a setting that was not measured before (a new seed
each time), so nothing comes from the journal.
"""

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

import nbformat
import pandas as pd
from tqdm.auto import tqdm

import compresslab as cl
from tests import jupyterlab

CELL = """
import ipywidgets
import compresslab as cl
other, answer = ipywidgets.IntSlider(description="other"), ipywidgets.Label("other is 0")
other.observe(lambda change: setattr(answer, "value", f"other is {change['new']}"), "value")
lab = cl.lab.explore("TECHNIQUE", model="MODEL", data="mnist")
ipywidgets.VBox([other, answer, lab])
"""
BACK = """
moved = lab.controls[lab.choice.control]
if moved.value - moved.step < moved.min:
    moved.value = moved.max
    lab.wait(60)
"""
IDLE = """
import time
started = time.perf_counter()
while not lab.curve_is_complete and time.perf_counter() < started + 60:
    time.sleep(0.02)
print(time.perf_counter() - started)
"""
# Times the next key press: when it happened, when a picture changed, when a text appeared.
TIMER = """
() => {
  window.timed = {};
  const done = /against dense\\b.*(smaller|larger)/;
  document.addEventListener('keydown', () => {
    window.timed = {pressed: performance.now()};
    window.before = [...document.querySelectorAll('img.widget-image')].map(image => image.src);
    window.told = document.querySelector('.compresslab-status').innerText;
    window.answer = [...document.querySelectorAll('.widget-label')].map(label => label.innerText).join();
  }, true);
  const look = () => {
    const timed = window.timed, now = performance.now() - timed.pressed;
    if (timed.pressed !== undefined) {
      const changed = [...document.querySelectorAll('img.widget-image')].some((image, index) =>
        image.complete && image.naturalWidth > 0 && window.before[index] && image.src !== window.before[index]);
      if (changed && timed.picture === undefined) timed.picture = now;
      const status = document.querySelector('.compresslab-status').innerText;
      if (status !== window.told && done.test(status) && timed.point === undefined) timed.point = now;
      const answer = [...document.querySelectorAll('.widget-label')].map(label => label.innerText).join();
      if (answer !== window.answer && timed.answer === undefined) timed.answer = now;
    }
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}
"""


def press(notebook, label, key, wanted):
    """Press a key on a slider and return the milliseconds until what is `wanted` happened."""
    notebook.slider(label).focus()
    notebook.page.keyboard.press(key)
    notebook.page.wait_for_function(f"() => window.timed.{wanted} !== undefined", timeout=60_000)
    return notebook.page.evaluate("() => window.timed")


def moves(notebook, count):
    """First picture and retrained point, in ms, of `count` moves down; from its low end a slider goes to the other."""
    name = notebook.execute("print(lab.choice.control)")
    pictures, points = [], []
    for _ in range(count):
        notebook.execute(BACK)
        notebook.execute("lab.controls['seed'].value += 1; lab.wait(60)")
        timed = press(notebook, name, "ArrowLeft", "point")
        pictures.append(timed["picture"])
        points.append(timed["point"])
    return pictures, points


def whole_curve(notebook, rounds=3):
    """Seconds until the lab, left alone with one new point, has filled in the curve through it."""
    times = []
    for _ in range(rounds):
        notebook.execute("lab.controls['seed'].value += 1; lab.wait(60)")
        times.append(float(notebook.execute(IDLE)))
    return f"{statistics.median(times):.1f}"


def others(notebook, count):
    """Milliseconds until another slider's label has changed, while the lab retrains."""
    notebook.execute("lab.controls['steps'].value = lab.controls['steps'].max")
    times = []
    for _ in range(count):
        notebook.execute("lab.controls['seed'].value += 1")
        notebook.page.wait_for_timeout(400)
        times.append(press(notebook, "other", "ArrowRight", "answer")["answer"])
        if notebook.execute("print(lab.wait(0))") != "False":
            raise RuntimeError("the retraining was over before the other widget was asked")
    return times


def summary(times):
    """Median and 95th percentile in words."""
    return f"{statistics.median(times):.0f} / {statistics.quantiles(times, n=20)[-1]:.0f}"


def measure(technique, model, count):
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        cell = CELL.replace("TECHNIQUE", technique).replace("MODEL", model)
        content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
        content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(content, Path(folder) / "latency.ipynb")
        with jupyterlab.server(folder, home) as (address, token), jupyterlab.browser() as page:
            notebook = jupyterlab.Notebook(page, address, token, "latency.ipynb")
            notebook.run_all()
            notebook.execute("lab.wait(60)")
            page.evaluate(TIMER)
            pictures, points = moves(notebook, count)
            return {
                "technique": technique,
                "network": model,
                "first picture (ms)": summary(pictures),
                "retrained point (ms)": summary(points),
                "whole curve (s)": whole_curve(notebook),
                "another widget (ms)": summary(others(notebook, count)),
            }


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=30)
    parser.add_argument("--techniques", nargs="+", default=cl.techniques.names())
    parser.add_argument("--models", nargs="+", default=["lenet_300_100", "article_mlp"])
    chosen = parser.parse_args()
    pairs = itertools.product(chosen.techniques, chosen.models)
    rows = []
    for pair in tqdm(list(pairs), desc="labs"):
        rows.append(measure(*pair, chosen.moves))
        tqdm.write(str(rows[-1]))  # a run that is cut short has shown what it measured
    print(f"median / 95th percentile of {chosen.moves} moves")
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
