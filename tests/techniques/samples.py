"""Foreign networks that the tests of techniques share: small ones, with the blocks of large ones."""

import torchvision
from torch import nn


class NarrowResNet(torchvision.models.resnet.ResNet):
    """A ResNet of five blocks, with an eighth of the channels of resnet18."""

    def __init__(self):
        super().__init__(torchvision.models.resnet.BasicBlock, [2, 1, 1, 1])
        self.fc = nn.Linear(64, 5)

    def _make_layer(self, block, planes, *arguments, **options):
        return super()._make_layer(block, planes // 8, *arguments, **options)


def narrow_mobilenet():
    """A MobileNetV3 of three blocks: squeeze and excitation, depthwise convolutions, a residual sum."""
    blocks = [
        (8, 3, 8, 8, True, "RE", 2, 1, 1.0),
        (8, 3, 24, 16, False, "RE", 2, 1, 1.0),
        (16, 5, 32, 16, True, "HS", 1, 1, 1.0),
    ]
    blocks = [torchvision.models.mobilenetv3.InvertedResidualConfig(*block) for block in blocks]
    return torchvision.models.MobileNetV3(blocks, last_channel=64, num_classes=5)
