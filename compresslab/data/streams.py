"""A part of a data set that is read from a DataLoader, batch by batch, and never held whole."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import torch

from compresslab import checks
from compresslab.data.sets import Data, Split, split_of

SAMPLE = 1000  # images that are kept, for techniques that look at some
WANTED = "give a DataLoader that yields pairs (images, targets) of tensors, a row of each for every image"


class Stream:
    """The batches of a loader, read anew each time: its shuffling and its augmentation are drawn anew as well.

    loader        a DataLoader, or anything that can be iterated again and again; yields (images (N, …), targets (N, …))
    loss, metric  as of `Split`
    raises        ValueError for a loader that yields something else

    `images` are the first thousand, for what needs only some; the targets are not there as one tensor.
    """

    def __init__(self, loader: Iterable, loss: Callable | None = None, metric: Callable | None = None):
        if not isinstance(loader, Iterable) or isinstance(loader, Iterator | str | torch.Tensor):
            raise ValueError(f"loader is {checks.words(loader)}; {WANTED}, and can be read again and again")
        self.loader, self.loss, self.metric = loader, loss, metric
        self.batch_size = len(next(iter(self), ()))
        if not self.batch_size:
            raise ValueError(f"the loader yields nothing; {WANTED}")

    def __iter__(self) -> Iterator[Split]:
        """Yield the batches of one pass."""
        for position, batch in enumerate(self.loader):
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ValueError(f"batch {position} of the loader is {_describe(batch)}; {WANTED}")
            if not all(isinstance(part, torch.Tensor) for part in batch):
                kinds = " and ".join(type(part).__name__ for part in batch)
                raise ValueError(f"batch {position} of the loader is a pair of {kinds}; {WANTED}")
            yield split_of(tuple(batch), any_targets=self.loss is not None or self.metric is not None)

    def __len__(self):
        dataset = getattr(self.loader, "dataset", None)
        return len(dataset) if hasattr(dataset, "__len__") else self._sizes[1]

    @property
    def batches(self) -> int:
        """Return the number of batches of one pass."""
        try:
            return len(self.loader)
        except TypeError:  # a DataLoader of a data set that flows
            return self._sizes[0]

    @cached_property
    def _sizes(self):
        """Count the batches and images of one pass, for a loader without a length."""
        sizes = [len(batch) for batch in self]
        return len(sizes), sum(sizes)

    @cached_property
    def images(self) -> torch.Tensor:
        """Return the first images, a thousand at most."""
        return self.sample(SAMPLE).images

    @property
    def labels(self) -> torch.Tensor:
        """Refuse: the labels of a loader are not one tensor."""
        raise ValueError("this needs all labels at once, and a DataLoader does not give them; use data.from_tensors")

    def sample(self, count: int) -> Split:
        """Return the first images and their targets, `count` at most."""
        parts, size = [], 0
        for batch in self:
            parts.append(batch)
            size += len(batch)
            if size >= count:
                break
        images, labels = (torch.cat([getattr(part, name) for part in parts])[:count] for name in ("images", "labels"))
        return Split(images, labels, self.loss, self.metric)

    def __repr__(self):
        return f"Stream({len(self):,} images of shape {tuple(self.images.shape[1:])}, {self.batches} batches)"


def from_loader(
    train: Iterable, validation: Iterable, test: Iterable, *, classes: Iterable[str] | None = None,
    loss: Callable | None = None, metric: Callable | None = None, name: str = "custom",
) -> Data:  # fmt: skip
    """Make Data of DataLoaders, which are read anew at every use and never held whole.

    train, validation, test  DataLoaders that yield (images (N, …), targets (N, …)); uint8 images are divided by 255
    classes       names of the classes, label 0 first; () without them
    loss, metric  as of `Split`: for targets that are no class numbers
    returns       Data; what is measured on it is kept in the journal for this process alone
    raises        ValueError for a loader that yields something else
    """
    parts = {"train": train, "validation": validation, "test": test}
    streams = {}
    for part, loader in parts.items():
        try:
            streams[part] = Stream(loader, loss, metric)
        except ValueError as error:
            raise ValueError(f"{part}: {error}") from error
    return Data(name, **streams, classes=tuple(map(str, classes or ())))


def _describe(batch):
    return f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list | dict) else "")
