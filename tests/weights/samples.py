"""Small models that the tests of this folder share."""

from torch import nn


class Tied(nn.Module):
    """An embedding and an output layer that share one weight."""

    def __init__(self):
        super().__init__()
        self.embedding, self.output = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return self.output(self.embedding(tokens.long()).mean(1))
