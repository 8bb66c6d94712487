"""More images from those there are: each copy shifted, turned, stretched and bent a little, at random.

Simard, Steinkraus, Platt 2003, "Best practices for convolutional neural networks applied to visual document analysis".
"""

import math

import torch
from torch.nn import functional

from compresslab import checks
from compresslab.data import Split, split_of

KNOTS = 5  # of the elastic field, along each side
CHUNK = 2000  # images distorted at a time


def augmented(data, copies=1, seed=0, *, shift=2.0, degrees=12.0, scale=0.1, shear=0.1, elastic=0.7, mirror=False):
    """A Split of the images as they are, followed by distorted copies of all of them.

    data     a Split, or a pair (images, labels); images (N, channels, height, width)
    copies   0 or more
    seed     of a private generator, 0 or more
    shift, degrees, scale, shear  half-widths of even distributions: pixels, degrees, fractions; measured in pixels, so
             that a square stays one when it is turned, whatever the shape of the image
    elastic  standard deviation, in pixels, of a smooth field with 5 by 5 knots
    mirror   whether every other copy, at random, is also turned left to right
    returns  Split of (1 + copies) * N images
    raises   ValueError for settings out of range, images that are not 4-d
    """
    split = split_of(data)
    checks.integer("copies", copies, 0, 1000)
    checks.integer("seed", seed, 0)
    for name, value in (
        ("shift", shift),
        ("degrees", degrees),
        ("scale", scale),
        ("shear", shear),
        ("elastic", elastic),
    ):
        checks.real(name, value, 0, 180 if name == "degrees" else 1000)
    if split.images.dim() != 4:
        raise ValueError(f"images have shape {tuple(split.images.shape)}; give (N, channels, height, width)")
    generator, (count, *shape) = torch.Generator().manual_seed(seed), split.images.shape
    images = torch.empty((1 + copies) * count, *shape)
    images[:count] = split.images
    for start in range(count, len(images), CHUNK):
        stop = min(start + CHUNK, len(images))
        part = images[torch.arange(start, stop) % count]  # the originals stand at the front
        field = _field(part, generator, shift, math.radians(degrees), scale, shear, elastic)
        if mirror:
            field[torch.rand(len(part), generator=generator) < 0.5, ..., 0] *= -1
        images[start:stop] = functional.grid_sample(part, field, align_corners=False)
    return Split(images, split.labels.repeat(1 + copies))


def _field(images, generator, shift, turn, scale, shear, elastic):
    """Where each pixel of each image comes from: (N, height, width, 2), in units of half the image."""

    def within(limit):
        return (torch.rand(len(images), generator=generator) * 2 - 1) * limit

    half = torch.tensor(images.shape[:1:-1]) / 2  # (width, height)
    aspect = half[0] / half[1]
    angle, wide, high, lean = within(turn), 1 + within(scale), 1 + within(scale), within(shear)
    rows = [angle.cos() * wide, (lean - angle.sin() * high) / aspect, within(shift) / half[0]]
    rows += [angle.sin() * wide * aspect, angle.cos() * high, within(shift) / half[1]]
    field = functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), images.shape, align_corners=False)
    knots = torch.randn(len(images), 2, KNOTS, KNOTS, generator=generator) * elastic / half[:, None, None]
    return field + functional.interpolate(knots, images.shape[2:], mode="bicubic").permute(0, 2, 3, 1)
