"""Keep a still picture of a lab below it: what a reader sees on a page without a kernel.

A saved notebook holds widgets by name alone; on GitHub, in an HTML export or before its kernel runs, nothing of them is
there. The page of a live lab hides the picture (page.css).
"""

import base64
import html
import io

from IPython.display import HTML, display
from PIL import Image

SENTENCE = "The lab as it was left: run this cell in JupyterLab to move its sliders."


class StillPicture:
    """An output of the cell that shows a lab, brought up to date when the lab comes to rest."""

    def __init__(self):
        self._handles, self._chart = [], None

    def show(self) -> None:
        """Add the picture to the output of the cell that runs."""
        self._handles.append(display(HTML(self._write()), display_id=True))

    def update(self, png: bytes, status: str, text: str) -> None:
        """Change the picture everywhere it was shown.

        png     the chart;  status  the lab's status line, HTML;  text  what the chart shows, for screen readers
        """
        self._chart = png, status, text
        content = self._write() if self._handles else ""
        for handle in self._handles:
            handle.update(HTML(content))

    def _write(self):
        """Return the picture as HTML, in few colours: a notebook that is saved stays small."""
        if self._chart is None:
            return ""
        png, status, text = self._chart
        packed = io.BytesIO()
        Image.open(io.BytesIO(png)).quantize(64).save(packed, "png", optimize=True)
        source, alternative = base64.b64encode(packed.getvalue()).decode(), html.escape(text, quote=True)
        image = f'<img src="data:image/png;base64,{source}" alt="{alternative}" style="max-width: 100%">'
        return f'<div class="compresslab-still">{image}<p>{status}</p><p><em>{SENTENCE}</em></p></div>'
