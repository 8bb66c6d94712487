"""A real JupyterLab in a real browser, for the browser test and for benchmarks/slider_latency.py.

The server listens on loopback only, with a token and folders of its own; the browser is the machine's Chromium, driven
by playwright.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
BROKEN = ".jupyter-widgets-error-widget, :text('Error displaying widget'), :text('Error creating widget')"
NO_NEWS = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}

# Called for every frame that the browser paints: keeps when each image changed, and whether it was ever blank.
WATCH = """
() => {
  const watched = window.watched = {changes: [], blanks: 0, frames: 0};
  const sources = new Map();
  const look = () => {
    if (window.watched !== watched) return;  // a later watch has begun
    watched.frames += 1;
    document.querySelectorAll('img.widget-image').forEach((image, index) => {
      const box = image.getBoundingClientRect();
      const painted = image.complete && image.naturalWidth > 0;
      if (image.offsetParent === null) return;  // in a tab that is not open
      if (sources.has(index) && (box.height < 20 || (image.complete && image.naturalWidth === 0)))
        watched.blanks += 1;
      if (painted && sources.get(index) !== image.src) {
        if (sources.has(index)) watched.changes.push([performance.now(), index]);
        sources.set(index, image.src);
      }
    });
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}
"""


def find_chromium():
    """Path of the machine's Chromium, or None."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


@contextlib.contextmanager
def server(folder, home):
    """A JupyterLab over the notebooks in `folder`, with COMPRESSLAB_HOME at `home`; yields its address and token."""
    token, settings = secrets.token_hex(16), Path(home) / "jupyter"
    (settings / "labconfig").mkdir(parents=True, exist_ok=True)
    (settings / "labconfig" / "page_config.json").write_text(json.dumps(NO_NEWS))
    places = {name: str(settings / name.lower()) for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    environment = os.environ | places | {"COMPRESSLAB_HOME": str(home), "JUPYTER_CONFIG_DIR": str(settings)}
    told = [f"--ServerApp.root_dir={folder}", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", "--allow-root"]
    told += [f"--IdentityProvider.token={token}", "--no-browser", "--LabApp.expose_app_in_browser=True"]
    with open(Path(home) / "server.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *told],
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield _address(process, settings / "jupyter_runtime_dir", Path(home) / "server.log"), token
    finally:
        process.terminate()
        process.wait(20)


def _address(process, runtime, log, patience=180):
    """Wait until the server answers; its file in the runtime folder tells the port."""
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        for file in runtime.glob("jpserver-*.json"):
            with contextlib.suppress(OSError, ValueError):
                address = json.loads(file.read_text())["url"]
                urllib.request.urlopen(address + "login", timeout=2).close()
                return address
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start: {log.read_text()[-2000:]}")


def ask(address, token, path, content):
    """Send a request to the server's REST interface; return its answer."""
    headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}api/{path}", json.dumps(content).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def start_kernel(address, token):
    """Start a kernel that several notebooks may use in turn; return its id."""
    return ask(address, token, "kernels", {"name": "python3"})["id"]


def use_kernel(address, token, kernel, name):
    """Make a notebook use a running kernel when it is opened."""
    ask(address, token, "sessions", {"path": name, "name": name, "type": "notebook", "kernel": {"id": kernel}})


@contextlib.contextmanager
def browser(width=1500, height=1100):
    """A page of a fresh Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_ARGUMENTS)
        page = chromium.new_context(viewport={"width": width, "height": height}).new_page()
        try:
            yield page
        finally:
            chromium.close()


class Notebook:
    """One notebook, open in JupyterLab.

    console  errors that the browser's console has shown since the notebook was opened
    """

    def __init__(self, page, address, token, name):
        self.page, self.name, self.console = page, name, []
        page.on("console", lambda line: self.console.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: self.console.append(str(error)))
        if page.url.startswith(address):
            self._open_tab()
        else:
            page.goto(f"{address}lab/tree/{name}?reset&token={token}")
        self._wait_until_open()

    def _open_tab(self):
        open_path = "async path => { await window.jupyterapp.commands.execute('docmanager:open', {path}) }"
        self.page.evaluate(open_path, self.name)

    def _wait_until_open(self):
        self.page.wait_for_selector(".jp-Notebook", timeout=180_000)
        self.page.wait_for_function("() => window.jupyterapp !== undefined", timeout=180_000)
        self._wait_for_kernel(180_000)

    def command(self, name):
        """Run one of JupyterLab's commands."""
        self.page.evaluate("name => { window.jupyterapp.commands.execute(name) }", name)

    def save(self):
        """Save the notebook, outputs and all."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")

    def reload(self):
        """Load the browser's page again; the kernel stays alive."""
        self.page.reload()
        self._wait_until_open()

    def reopen(self):
        """Close the notebook's tab and open the notebook again; the kernel stays alive."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('application:close')")
        self.page.wait_for_selector(".jp-Notebook", state="detached")
        self._open_tab()
        self._wait_until_open()

    def close(self):
        """Close the notebook's tab without asking to save; forget all names and widgets of the kernel."""
        self.execute("import ipywidgets; lab.discard(); ipywidgets.Widget.close_all()")
        self.execute("%reset -f")
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.dispose()")
        self.page.wait_for_selector(".jp-Notebook", state="detached")

    def open_output_view(self):
        """Show the selected cell's output a second time, in a view of its own beside the notebook."""
        self.page.evaluate(
            """async () => {
                 const {commands, shell} = window.jupyterapp, notebook = shell.currentWidget;
                 await commands.execute('notebook:create-output-view');
                 shell.activateById(notebook.id);
               }"""
        )

    def wait_for_pictures(self, count, timeout=120_000):
        """Wait until the page has `count` pictures or more, and all of them are painted."""
        self.page.wait_for_function(
            """count => {
                 const images = [...document.querySelectorAll('img.widget-image')];
                 return images.length >= count && images.every(image => image.complete && image.naturalWidth > 0);
               }""",
            arg=count,
            timeout=timeout,
        )

    def broken(self):
        """How many widgets the page shows an error for, instead of them."""
        return self.page.locator(BROKEN).count()

    def _session(self):
        return "window.jupyterapp.shell.currentWidget.context.sessionContext"

    def _wait_for_kernel(self, timeout=60_000):
        self.page.wait_for_function(f"() => {self._session()}?.session?.kernel?.status === 'idle'", timeout=timeout)

    def run_all(self, timeout=120_000):
        """Run every cell and wait until the kernel is done with all of them."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self._wait_for_kernel(timeout)

    def outputs(self):
        """The text that all cells printed, from the notebook's model."""
        return self.page.evaluate(
            """() => [...window.jupyterapp.shell.currentWidget.content.model.cells].map(cell =>
                 (cell.toJSON().outputs || []).map(output => [output.text].flat().join('')).join('')).join('\\n')"""
        )

    def errors(self):
        """Names and values of the errors that cells raised."""
        return self.page.evaluate(
            """() => [...window.jupyterapp.shell.currentWidget.content.model.cells].flatMap(cell =>
                 (cell.toJSON().outputs || []).filter(output => output.output_type === 'error')
                 .map(output => output.ename + ': ' + output.evalue))"""
        )

    def execute(self, code):
        """Run code in the notebook's kernel, in no cell; returns what it printed, or raises what it raised."""
        text, error = self.page.evaluate(
            """async code => {
                 const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
                 let text = '', error = null;
                 const run = kernel.requestExecute({code, store_history: false});
                 run.onIOPub = message => {
                   if (message.header.msg_type === 'stream') text += message.content.text;
                   if (message.header.msg_type === 'error') error = message.content.evalue;
                 };
                 await run.done;
                 return [text, error];
               }""",
            code,
        )
        if error is not None:
            raise RuntimeError(error)
        return text.strip()

    def scroll_to(self, selector, pages=60):
        """Scroll down the notebook until something is there (cells out of sight may not be), and bring it into view."""
        panel = self.page.locator(".jp-WindowedPanel-outer").first
        for _ in range(pages):
            if self.page.locator(selector).count():
                break
            panel.evaluate("panel => panel.scrollBy(0, 600)")
            self.page.wait_for_timeout(100)
        found = self.page.locator(selector).first
        found.evaluate("element => element.scrollIntoView({block: 'start'})")
        return found

    def slider(self, label):
        """The handle of the slider whose label starts with `label`."""
        row = self.page.locator(".widget-slider", has=self.page.locator(".widget-label", has_text=label)).first
        return row.locator(".noUi-handle")

    def watch(self):
        """Start looking at the pictures, frame by frame."""
        self.page.evaluate(WATCH)

    def watched(self):
        """What was seen since `watch`: changes [[ms, image], …], blanks, frames."""
        return self.page.evaluate("() => window.watched")
