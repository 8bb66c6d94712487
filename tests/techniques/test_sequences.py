"""Recurrent layers, attention and, when named, embeddings are pruned, quantized and shared, and stay so."""

import pytest
import torch
from torch import nn

import compresslab as cl
from compresslab.weights.layers import find_matrices, get_mask, get_rounding


class Reader(nn.Module):
    """Words, read by a recurrent layer, mixed by attention."""

    def __init__(self, kind):
        super().__init__()
        self.words, self.memory = nn.Embedding(20, 16), kind(16, 16, batch_first=True, bidirectional=False)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 2)

    def forward(self, tokens):
        sequence = self.memory(self.words(tokens))[0]
        return self.head(self.attention(sequence, sequence, sequence)[0].mean(1))


RECURRENT = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
NAMES = ["memory.weight_ih_l0", "memory.weight_hh_l0", "attention.in_proj_weight", "attention.out_proj", "head"]


@pytest.fixture(scope="module")
def data():
    tokens = torch.randint(0, 20, (600, 7), generator=torch.Generator().manual_seed(0))
    return tokens, ((tokens >= 10).sum(1) > 3).long()


def train(kind, data):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Reader(RECURRENT[kind])
    return cl.train.finetune(model, data, epochs=15, seed=0, bar=False)


TECHNIQUES = {
    "zero_pruning": ({"sparsity": 0.8}, lambda module, name: (~get_mask(module, name)).any()),
    "quantization": ({"bits": 4}, lambda module, name: get_rounding(module, name) is not None),
    "weight_sharing": ({"bits": 3}, lambda module, name: len(getattr(module, name).unique()) <= 9),
}


@pytest.mark.filterwarnings("ignore:.*leaves alone words")
@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("kind", RECURRENT)
def test_their_weights_are_compressed_trained_and_stored(kind, name, data, tmp_path):
    setting, is_compressed = TECHNIQUES[name]
    model = train(kind, data)
    before = cl.measure.accuracy(model, data)
    small = getattr(cl, name).__dict__[{"zero_pruning": "prune", "quantization": "quantize"}.get(name, "share")](
        model, **setting
    )
    trained = cl.train.finetune(small, data, epochs=5, seed=0, bar=False)
    for stage in (small, trained):
        matrices = find_matrices(stage)
        assert list(matrices) == NAMES
        assert all(is_compressed(module, tensor) for module, tensor in matrices.values())
    for layer, (module, tensor) in find_matrices(trained).items():  # a step may be too small to move a code
        moved = [getattr(part, tensor) for part in (find_matrices(small)[layer][0], module)]
        assert name == "quantization" or not torch.equal(*moved)
    assert cl.measure.accuracy(trained, data) > before - 0.1
    cl.save(trained, tmp_path / "net.clab")
    assert (tmp_path / "net.clab").stat().st_size < 0.5 * cl.measure.sizes(model).file_bytes
    loaded = cl.load(tmp_path / "net.clab", into=Reader(RECURRENT[kind]))
    assert torch.equal(cl.train.evaluate(loaded, data[0]), cl.train.evaluate(trained, data[0]))


def test_an_embedding_is_compressed_when_it_is_named(data):
    model = train("LSTM", data)
    pruned = cl.zero_pruning.prune(model, sparsity=0.5, layers=["words"])
    assert (pruned.words.weight == 0).double().mean() == 0.5 and not (pruned.head.weight == 0).any()
    assert get_rounding(cl.quantization.quantize(model, bits=4, layers=["words"]).words) is not None
    assert len(cl.weight_sharing.share(model, bits={"words": 2}).words.weight.unique()) <= 5
    with pytest.warns(UserWarning, match=r"leaves alone words \(Embedding weights\)"):
        assert get_mask(cl.zero_pruning.prune(model, sparsity=0.5).words) is None


def test_a_layer_or_one_of_its_weights_is_named(data):
    model = train("LSTM", data)
    whole = cl.zero_pruning.prune(model, sparsity=0.5, layers=["memory"])
    assert get_mask(whole.memory, "weight_ih_l0") is not None and get_mask(whole.memory, "weight_hh_l0") is not None
    single = cl.zero_pruning.prune(model, sparsity=0.5, layers=["memory.weight_hh_l0"])
    assert get_mask(single.memory, "weight_ih_l0") is None and get_mask(single.memory, "weight_hh_l0") is not None
    shared = cl.weight_sharing.share(model, bits={"memory": 2, "attention": 3})
    assert len(shared.memory.weight_ih_l0.unique()) <= 5 and len(shared.attention.in_proj_weight.unique()) <= 9
    with pytest.raises(ValueError, match="bits has 'memory' and 'memory.weight_hh_l0', which are one layer"):
        cl.weight_sharing.share(model, bits={"memory": 2, "memory.weight_hh_l0": 3})


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_low_rank_and_the_removal_of_neurons_leave_them_alone_and_say_so(data):
    model = train("LSTM", data)
    with pytest.warns(UserWarning, match="memory.*LSTM"):
        assert isinstance(cl.low_rank.factorize(model, rank=1).memory, nn.LSTM)
    with pytest.warns(UserWarning, match="memory.*LSTM"):
        cl.activation_pruning.prune(model, data[0][:100], sparsity=0.5)
