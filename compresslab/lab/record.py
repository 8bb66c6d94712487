"""The points of one lab: what was measured here, which of it is on the picture, and the one that is chosen."""

import threading

from compresslab import journal as journals


class Record:
    """Results by key, in the order in which they came; the worker writes, the notebook reads."""

    def __init__(self):
        self._lock = threading.RLock()
        self._results, self._chosen, self._hidden = {}, (), set()
        self._cleared = None

    def add(self, *results):
        """Take Results in; they are on the picture from now on."""
        with self._lock:
            for result in results:
                self._results.setdefault(result.key, result)
                self._hidden.discard(result.key)

    def choose(self, *results):
        """Take in the Results of the chosen point; they are the last rows until another is chosen."""
        with self._lock:
            self.add(*results)
            self._chosen = tuple(result.key for result in results)

    def shown(self, key):
        """Whether a known point is on the picture: all are, but those that were cleared."""
        return key not in self._hidden

    def clear(self, known):
        """Empty the record and hide the points `known` (keys); `undo` brings all back."""
        with self._lock:
            self._cleared = {}, (), set(self._hidden)
            self.clear_late(known)

    def clear_late(self, known):
        """Take away, too, what a job that was still at work has added since the clear."""
        with self._lock:
            if self._cleared:
                results, chosen, hidden = self._cleared
                self._cleared = {**results, **self._results}, chosen or self._chosen, hidden
                self._results, self._chosen, self._hidden = {}, (), self._hidden | set(known)

    def undo(self):
        """Bring back what the last `clear` took away, before what has come since."""
        with self._lock:
            results, chosen, hidden = self._cleared
            self._results, self._chosen = {**results, **self._results}, self._chosen or chosen
            self._hidden, self._cleared = hidden - set(self._results), None

    @property
    def cleared(self):
        """Whether there is something to undo."""
        return self._cleared is not None

    def to_frame(self):
        """All Results as a DataFrame, those of the chosen point last."""
        with self._lock:
            others = [result for key, result in self._results.items() if key not in self._chosen]
            return journals.frame([*others, *(self._results[key] for key in self._chosen if key in self._results)])
