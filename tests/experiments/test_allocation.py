"""Scan, allocation, sliders for each layer: the sweep's numbers, the cheapest choice, and never an empty layer."""

import itertools
import math
import pickle
import warnings

import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

import compresslab as cl
from compresslab.techniques import Control, Technique

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data():
    images = torch.rand(300, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return cl.data.from_tensors(images, (images.flatten(1).sum(1) > 18).long())


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 2))


def conv_net():
    body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
    return nn.Sequential(*[nn.Sequential(body, nn.Flatten()), nn.Linear(32, 2)])


@pytest.fixture
def net():
    return seeded(mlp)


@pytest.fixture
def journal(tmp_path):
    return cl.journal.open(tmp_path / "journal.sqlite")


def table(rows, dense=1000, parameter="sparsity"):
    """A scan from (layer, value, points, saved[, zeros])."""
    rows = [(*row, 0.0)[:5] for row in rows]
    frame = pd.DataFrame(rows, columns=["layer", parameter, "points", "saved", "zeros"])
    frame.insert(2, "accuracy", 0.9 - frame["points"] / 100)
    return frame.assign(file_bytes=dense - frame["saved"], dense_file=dense)


def sparsity_of(layer):
    return (layer.weight == 0).double().mean().item()


class TestScan:
    def test_each_row_is_the_sweeps_result_of_that_layer_alone(self, net, data, journal):
        found = cl.allocation.scan(net, data, values=[0.5, 0.9], journal=journal, bar=False)
        columns = ["layer", "sparsity", "accuracy", "points", "file_bytes", "saved", "dense_file", "zeros"]
        assert list(found) == columns
        assert list(found["layer"].unique()) == ["1", "3", "5"] and len(found) == 6
        accuracy, dense = cl.measure.accuracy(net, data.validation), cl.storage.file_bytes(net)
        for row in found.itertuples():
            alone = cl.zero_pruning.prune(net, sparsity=row.sparsity, layers=[row.layer])
            assert row.accuracy == cl.measure.accuracy(alone, data.validation)
            assert (row.file_bytes, row.dense_file) == (cl.storage.file_bytes(alone), dense)
            layers = (model.get_submodule(row.layer) for model in (net, alone))
            assert row.saved == np.subtract(*map(cl.storage.file_bytes, layers))
            assert row.points == pytest.approx(100 * (accuracy - row.accuracy))
            assert row.zeros == pytest.approx(row.sparsity, abs=0.02)

    def test_it_is_in_the_journal_and_comes_from_it(self, net, data, journal, monkeypatch):
        first = cl.allocation.scan(net, data, values=[0.5], journal=journal, bar=False)
        assert len(journal) == 3
        monkeypatch.setattr(cl.sweep, "compute", None)
        pd.testing.assert_frame_equal(first, cl.allocation.scan(net, data, values=[0.5], journal=journal, bar=False))

    @pytest.mark.parametrize(
        "technique, values", [("quantization", [1, 4]), ("weight_sharing", [2]), ("low_rank", [1])]
    )
    def test_other_techniques(self, technique, values, net, data):
        found = cl.allocation.scan(net, data, technique, np.array(values), ["1", "3"], journal=False, bar=False)
        assert found.columns[1] == ("rank" if technique == "low_rank" else "bits")
        assert (found["saved"] > 0).all() and (found["zeros"] < 1).all()

    def test_retraining_setting_and_parameter(self, net, data, journal):
        options = {"parameter": "threshold", "values": [0.1], "setting": {"criterion": "random"}, "steps": 2, "seed": 3}
        found = cl.allocation.scan(net, data, layers=["3"], journal=journal, bar=False, **options)
        (row,) = journal.results(stage="retrained")
        assert row.setting == {"threshold": 0.1, "scope": "global", "criterion": "random", "layers": ["3"]}
        assert (row.steps, row.seed, row.accuracy) == (2, 3, found["accuracy"].item())

    @pytest.mark.parametrize("values", [0.5, np.float64(0.5), [np.float32(0.5)], (0.5, 0.5)], ids=repr)
    def test_a_single_value(self, values, net, data):
        found = cl.allocation.scan(net, data, values=values, layers=["3"], journal=False, bar=False)
        assert found["sparsity"].tolist() == [0.5]

    def test_names_of_model_and_data_and_the_values_of_its_own(self):
        found = cl.allocation.scan("lenet_300_100", "mnist", layers=["fc3"], journal=False, bar=False)
        assert tuple(found["sparsity"]) == cl.allocation.VALUES["sparsity"]
        assert found["points"].iloc[-1] > 10 > found["points"].iloc[0]

    def test_dotted_names_batch_norm_and_a_shared_weight(self, data):
        model = seeded(conv_net)
        assert list(cl.allocation.scan(model, data, values=[0.5], journal=False, bar=False)["layer"]) == [
            "0.0.0", "0.0.3", "1",
        ]  # fmt: skip
        tied = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 2)))
        tied[2].weight = tied[1].weight
        assert list(cl.allocation.scan(tied, data, values=[0.5], journal=False, bar=False)["layer"]) == ["1", "3"]

    def test_an_emptied_layer_is_seen(self, net, data):
        found = cl.allocation.scan(net, data, values=[1.0], layers=["5"], journal=False, bar=False)
        assert found["zeros"].item() == 1

    def test_layers_that_a_technique_refuses_are_named(self, net, data):
        with pytest.warns(UserWarning, match="leaves out 5 at 0.5; the first because .*outputs"):
            found = cl.allocation.scan(net, data, "activation_pruning", [0.5], journal=False, bar=False)
        assert list(found["layer"]) == ["1", "3"] and (found["zeros"] == 0).all()
        with pytest.raises(ValueError, match="outputs"):
            cl.allocation.scan(net, data, "activation_pruning", [0.5], ["5"], journal=False, bar=False)

    @pytest.mark.parametrize(
        "given, told",
        [
            ({"technique": "distillation"}, "no parameter `layers`"),
            ({"technique": "nothing"}, "technique is 'nothing'"),
            ({"layers": ["9"]}, "'9'"),
            ({"layers": []}, "layers is empty"),
            ({"values": []}, "values is \\[\\]"),
            ({"values": [1.5]}, "sparsity is 1.5"),
            ({"parameter": "scope"}, "parameter is 'scope'"),
            ({"parameter": "threshold"}, "values is None; give the values of threshold"),
            ({"setting": {"rank": 3}}, "no parameter 'rank'"),
            ({"steps": -1}, "steps is -1"),
            ({"model": 3}, "model is 3; give a torch.nn.Module"),
            ({"model": nn.Flatten()}, "no such layer"),
            ({"data": 3}, "data is a int"),
        ],
    )
    def test_errors(self, given, told, net, data):
        with pytest.raises(ValueError, match=told):
            cl.allocation.scan(**{"model": net, "data": data, "journal": False, "bar": False} | given)


STEEP = table([("a", 2, 0.0, 100), ("a", 1, 9.0, 300), ("b", 2, 0.4, 200), ("b", 1, 1.0, 300)], parameter="bits")


class TestAllocate:
    @pytest.mark.parametrize(
        "budget, shares",
        [
            (1000, {}),
            (950, {"a": 2}),
            (900, {"a": 2}),
            (899, {"a": 2, "b": 2}),
            (650, {"a": 2, "b": 1}),
            (500, {"a": 1, "b": 1}),
        ],
    )
    def test_the_fewest_points_a_byte_come_first(self, budget, shares):
        assert cl.allocation.allocate(STEEP, budget) == shares
        assert all(isinstance(value, int) for value in cl.allocation.allocate(STEEP, budget).values())

    def test_a_value_above_the_hull_is_not_taken(self):
        scan = table([("a", 3, 5.0, 100), ("a", 2, 6.0, 300), ("b", 3, 4.0, 100)], parameter="bits")
        assert cl.allocation.allocate(scan, 950) == {"a": 2}

    def test_fractions_take_the_last_step_in_part(self):
        scan = table([("a", 0.5, 0.0, 400), ("a", 0.9, 8.0, 800), ("b", 0.5, 1.0, 40)])
        assert cl.allocation.allocate(scan, 800) == {"a": 0.25}
        shares = cl.allocation.allocate(scan, 500)
        assert shares == {"a": 0.6}
        assert cl.allocation.expected(scan, shares) == {"points": pytest.approx(2.0), "file_bytes": 500}

    def test_a_value_that_empties_a_layer_is_never_chosen(self):
        scan = table([("a", 0.9, 1.0, 300, 0.9), ("a", 1.0, 0.0, 400, 1.0), ("b", 0.9, 50.0, 300, 0.9)])
        assert cl.allocation.allocate(scan, 650) == {"a": 0.9, "b": 0.15}
        with pytest.raises(ValueError, match="the least is about 400 bytes"):
            cl.allocation.allocate(scan, 350)

    def test_uniform(self):
        scan = table([("a", 0.5, 0.0, 200), ("a", 0.9, 8.0, 400), ("b", 0.5, 1.0, 50), ("b", 0.9, 2.0, 100)])
        assert cl.allocation.allocate(scan, 750, "uniform") == {"a": 0.5, "b": 0.5}
        assert cl.allocation.allocate(scan, 625, "uniform") == {"a": 0.7, "b": 0.7}
        assert cl.allocation.allocate(scan, 875, "uniform") == {"a": 0.25, "b": 0.25}
        assert cl.allocation.allocate(scan, 1000, "uniform") == {}
        assert cl.allocation.allocate(STEEP, 650, "uniform") == {"a": 1, "b": 1}
        with pytest.raises(ValueError, match="the least is about 500"):
            cl.allocation.allocate(scan, 499, "uniform")

    @hypothesis.given(seed=st.integers(0, 10_000), share=st.floats(0.05, 1.0))
    @hypothesis.settings(max_examples=60, deadline=None)
    def test_no_choice_of_values_that_saves_as_much_loses_less(self, seed, share):
        random = np.random.default_rng(seed)
        rows = []
        for layer in "abc":
            saved, points = np.sort(random.choice(np.arange(1, 200), 4, replace=False)), random.normal(2, 3, 4)
            rows += [(layer, bits, points[at], int(saved[at])) for at, bits in enumerate((4, 3, 2, 1))]
        scan = table(rows, parameter="bits")
        least = 1000 - scan.groupby("layer")["saved"].max().sum()
        shares = cl.allocation.allocate(scan, max(least, round(1000 - share * (1000 - least))))
        told = cl.allocation.expected(scan, shares) if shares else {"points": 0.0, "file_bytes": 1000}
        options = [[(0, 0.0), *zip(one["saved"], one["points"], strict=True)] for _, one in scan.groupby("layer")]
        for choice in itertools.product(*options):
            saved, points = (sum(part) for part in zip(*choice, strict=True))
            if saved >= 1000 - told["file_bytes"]:
                assert points >= told["points"] - 1e-9

    def test_what_was_scanned_adds_up_to_the_file(self, net, data):
        scan = cl.allocation.scan(net, data, values=[0.3, 0.6, 0.9], journal=False, bar=False)
        budget = int(0.5 * cl.storage.file_bytes(net))
        for rule in ("greedy", "uniform"):
            shares = cl.allocation.allocate(scan, budget, rule)
            told = cl.allocation.expected(scan, shares)["file_bytes"]  # a greedy step that wins points may go below
            assert told == pytest.approx(budget, abs=2) if rule == "uniform" else told <= budget + 2
            assert cl.storage.file_bytes(cl.allocation.apply(net, shares)) <= 1.1 * told

    def test_bytes_of_neurons_that_nobody_reads_are_not_counted_twice(self):
        net = cl.models.pretrained("lenet_300_100", "mnist")
        data = cl.data.from_tensors(*vars(cl.data.load("mnist").validation[:600]).values())
        scan = cl.allocation.scan(net, data, values=[0.8, 0.95], journal=False, bar=False)
        budget = cl.storage.file_bytes(net) // 10
        small = cl.allocation.apply(net, cl.allocation.allocate(scan, budget))
        assert 0.85 * budget < cl.storage.file_bytes(small) < 1.02 * budget

    @pytest.mark.parametrize("scan", [None, {}, pd.DataFrame({"a": [1]}), STEEP[:0]])
    def test_no_scan(self, scan):
        with pytest.raises(ValueError, match="scan"):
            cl.allocation.allocate(scan, 100)

    def test_errors(self):
        for budget in (0, -1, math.nan, "1 KiB", True):
            with pytest.raises(ValueError, match="budget is"):
                cl.allocation.allocate(STEEP, budget)
        with pytest.raises(ValueError, match="rule is 'best'"):
            cl.allocation.allocate(STEEP, 900, "best")
        with pytest.raises(ValueError, match="shares is 'c'"):
            cl.allocation.expected(STEEP, {"c": 1})
        with pytest.raises(ValueError, match=r"shares\['a'\] is 7"):
            cl.allocation.expected(STEEP, {"a": 7})


class TestSparsities:
    @pytest.mark.parametrize("rule", cl.allocation.RULES)
    @pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 1.0])
    def test_they_add_up(self, rule, sparsity, net):
        shares = cl.allocation.sparsities(net, sparsity, rule)
        counts = {"1": 1080, "3": 600, "5": 40}
        assert sum(counts[name] * share for name, share in shares.items()) == pytest.approx(sparsity * 1720, abs=1)
        assert all(-1e-9 <= share <= 1 for share in shares.values())

    def test_global_is_what_pruning_globally_gives(self, net):
        pruned = cl.zero_pruning.prune(net, sparsity=0.8)
        shares = cl.allocation.sparsities(net, 0.8, "global")
        assert shares == pytest.approx(
            {name: (pruned[int(name)].weight == 0).double().mean().item() for name in shares}
        )

    def test_lamp_by_its_definition_never_empties_a_layer(self):
        model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
        model[0].weight.data = torch.tensor([[1.0, -2.0, 3.0], [4.0, -5.0, 6.0]])
        model[1].weight.data = torch.tensor([[1e-6, 2e-6], [0.0, -3e-6]])
        scores = []
        for name, layer in (("0", model[0]), ("1", model[1])):
            squares = layer.weight.double().square().flatten()
            scores += [((one / squares[squares >= one].sum()).item(), name) for one in squares]
        for sparsity in (0.3, 0.5, 0.8):
            gone = [name for _, name in sorted(scores)[: round(10 * sparsity)]]
            shares = cl.allocation.sparsities(model, sparsity, "lamp")
            assert shares == pytest.approx({"0": gone.count("0") / 6, "1": gone.count("1") / 4})
        assert cl.allocation.sparsities(model, 0.6, "global")["1"] == 1
        assert max(cl.allocation.sparsities(model, 0.8, "lamp").values()) < 1

    def test_erk_keeps_in_proportion_to_sum_by_product(self):
        model = nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 10), nn.Conv2d(8, 16, 3))
        shares = cl.allocation.sparsities(model, 0.6, "erk")
        raw = {"0": 150 / 5000, "1": 60 / 500, "2": (8 + 16 + 6) / 1152}
        assert (1 - shares["0"]) / raw["0"] == pytest.approx((1 - shares["2"]) / raw["2"])
        assert shares["1"] == 0 and 0 < shares["0"] < shares["2"]

    @pytest.mark.parametrize("rule", cl.allocation.RULES)
    def test_none_is_none(self, rule, net):
        assert set(cl.allocation.sparsities(net, 0.0, rule).values()) == {0.0}
        for sizes in itertools.permutations((3, 7, 11, 49, 6)):
            model = nn.Sequential(*itertools.starmap(nn.Linear, itertools.pairwise(sizes)))
            assert set(cl.allocation.sparsities(model, 0.0, rule).values()) == {0.0}

    @pytest.mark.parametrize("rule", cl.allocation.RULES)
    def test_a_layer_without_weights_is_left_out(self, rule):
        full = seeded(lambda: nn.Linear(6, 6))
        model = nn.Sequential(nn.Linear(0, 5), full, nn.Linear(5, 0))
        assert cl.allocation.sparsities(model, 0.5, rule) == {"1": pytest.approx(0.5)}
        assert cl.allocation.sparsities(model[:1], 0.5, rule) == {}

    @pytest.mark.parametrize("rule", ["lamp", "global"])
    def test_weights_that_have_no_rank(self, rule, net):
        net[3].weight.data[0, 0] = math.nan
        with pytest.raises(ValueError, match=f"layer '3' has weights that rule '{rule}' cannot rank"):
            cl.allocation.sparsities(net, 0.5, rule)
        with pytest.raises(ValueError, match="layer '' is on the meta device"):
            cl.allocation.sparsities(nn.Linear(3, 3, device="meta"), 0.5, rule)

    def test_infinite_weights(self, net):
        net[3].weight.data[0, 0] = math.inf
        with pytest.raises(ValueError, match="layer '3' has weights that rule 'lamp' cannot rank"):
            cl.allocation.sparsities(net, 0.5, "lamp")
        pruned = cl.zero_pruning.prune(net, sparsity=0.5)
        assert cl.allocation.sparsities(net, 0.5, "global")["3"] == pytest.approx(sparsity_of(pruned[3]))

    def test_errors(self, net):
        for given, told in [((net, 90), "0.9"), ((net, 0.9, "best"), "rule is"), ((net, 0.9, "lamp", ["8"]), "'8'")]:
            with pytest.raises(ValueError, match=told):
                cl.allocation.sparsities(*given)
        with pytest.raises(ValueError, match="model is 3; give a torch.nn.Module"):
            cl.allocation.sparsities(3, 0.9)


class TestApply:
    def test_each_layer_by_its_own_value_and_the_model_unchanged(self, net):
        before = pickle.dumps(net.state_dict())
        small = cl.allocation.apply(net, {"1": 0.9, "5": 0.25})
        assert [round((small[at].weight == 0).double().mean().item(), 2) for at in (1, 3, 5)] == [0.9, 0.0, 0.25]
        assert pickle.dumps(net.state_dict()) == before

    def test_images_and_settings_are_handed_on(self, net, data):
        options = {"statistic": "variance", "images": data.train.images[:50]}
        small = cl.allocation.apply(net, {"1": 0.5, "3": 0.25}, "activation_pruning", parameter="sparsity", **options)
        assert [len(small[at].weight) for at in (1, 3, 5)] == [15, 15, 2]
        assert cl.allocation.apply(net, {})[1].weight.equal(net[1].weight)

    def test_errors(self, net):
        for given, told in [(({"8": 0.5},), "'8'"), ((0.5,), "shares is 0.5"), (({}, "distillation"), "layers")]:
            with pytest.raises(ValueError, match=told):
                cl.allocation.apply(net, *given)
        with pytest.raises(ValueError, match="model is 3"):
            cl.allocation.apply(3, {})


class TestPerLayer:
    def test_controls(self, net):
        technique = cl.allocation.per_layer("zero_pruning", net)
        assert [control.name for control in technique.controls] == [
            "layer_1",
            "layer_3",
            "layer_5",
            "budget",
            "criterion",
        ]
        first = technique.controls[0]
        assert (first.default, first.high, first.unit, first.alternative) == (0.0, 0.99, "%", "")
        assert first.help.startswith("1, 30 × 36. ")
        ranks = cl.allocation.per_layer("low_rank", net).controls[:3]
        assert [(one.default, one.high) for one in ranks] == [(17, 17), (12, 12), (2, 2)]
        assert cl.allocation.per_layer("quantization", net).controls[0].default == 8

    @pytest.mark.parametrize(
        "names, sliders",
        [
            (["features.0", "features.3", "head"], ["features_0", "features_3", "head"]),
            (["a.b", "a_b", "model", "0"], ["a_b_1", "a_b_2", "model_", "layer_0"]),
        ],
    )
    def test_names(self, names, sliders):
        from compresslab.experiments import per_layer

        assert per_layer._name_sliders(names) == sliders

    def test_what_is_not_named_stays_as_it_is(self, net):
        technique = cl.allocation.per_layer("zero_pruning", net)
        small = technique.apply(net, layer_3=0.5)
        assert [sparsity_of(small[at]) for at in (1, 3, 5)] == [0, 0.5, 0]
        only = cl.allocation.per_layer("zero_pruning", net, layers=["5", "1"])
        assert [control.name for control in only.controls][:2] == ["layer_1", "layer_5"]

    @pytest.mark.parametrize("budget", [0.05, 0.3, 0.7, 1.0])
    @pytest.mark.parametrize("values", [(0.0, 0.0, 0.0), (0.9, 0.5, 0.0), (0.99, 0.99, 0.99)])
    def test_budget_of_weights(self, budget, values, net):
        technique = cl.allocation.per_layer("zero_pruning", net)
        named = dict(zip(("layer_1", "layer_3", "layer_5"), values, strict=True))
        left = technique.apply(net, budget=budget, **named)
        counts = [int(left[at].weight.count_nonzero()) for at in (1, 3, 5)]
        wanted = [round(n * (1 - value)) for n, value in zip((1080, 600, 40), values, strict=True)]
        assert min(counts) >= 1
        assert sum(counts) == pytest.approx(min(sum(wanted), budget * 1720), abs=3)
        assert [a / sum(counts) for a in counts] == pytest.approx([a / sum(wanted) for a in wanted], abs=0.06)

    @pytest.mark.parametrize("technique, size", [("quantization", 32), ("weight_sharing", 32), ("low_rank", None)])
    def test_budget_of_bits_and_ranks(self, technique, size, net, data):
        made = cl.allocation.per_layer(technique, net)
        images = [data.train.images[:9]] if made.calibration else []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = made.apply(net, *images, budget=0.2, **({"activations": "fp32"} if images and size else {}))
        if size is None:
            numbers = sum(p.numel() for name, p in small.named_parameters() if "weight" in name)
            assert 0.12 * 1720 < numbers <= 0.2 * 1720
        else:
            assert max(len(row.unique()) for at in (1, 3, 5) for row in small[at].weight) <= 2**6

    def test_a_budget_that_cannot_be_met_leaves_something_everywhere(self, net):
        technique = cl.allocation.per_layer("quantization", net)
        with pytest.warns(UserWarning, match=r"budget is 1.00%, .* 3.12% stay"):
            small = technique.apply(net, torch.zeros(1, 1, 6, 6), budget=0.01, activations="fp32")
        assert all(len(small[at].weight.abs().unique()) <= len(small[at].weight) for at in (1, 3, 5))

    def test_both_ends_of_every_slider(self, net, data, journal):
        for name in ("zero_pruning", "low_rank", "weight_sharing"):
            technique = cl.allocation.per_layer(name, net)
            sliders = [one for one in technique.controls if not one.choices and not isinstance(one.default, bool)]
            grid = [{one.name: end} for one in sliders for end in (one.low, one.high)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results = list(cl.sweep.run(technique, net, data, grid, steps=0, journal=journal, bar=False))
            assert len(results) == len(grid) and {one.technique for one in results} == {f"{name} per layer"}

    @pytest.mark.parametrize("technique", ["zero_pruning", "quantization", "low_rank", "activation_pruning"])
    def test_its_source_is_a_recipe_that_gives_the_same_numbers(self, technique, net, data, journal):
        made = cl.allocation.per_layer(technique, net, layers=["1", "3"])
        setting = {"layer_1": made.controls[0].low + made.controls[0].step, **({"budget": 0.3} if made.anatomy else {})}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            *_, result = cl.sweep.run(made, net, data, [setting], steps=2, journal=journal, bar=False)
            recipe = eval(made.source(result.setting, result), {"cl": cl})
            small = recipe.apply(net, data, seed=0, journal=False, bar=False)
        assert cl.measure.accuracy(small, data.validation) == result.accuracy
        assert cl.storage.file_bytes(small) == result.file_bytes
        again = eval(made.source(), {"cl": cl, "model": net})
        assert again.controls == made.controls and again.depends == made.depends

    def test_it_is_for_networks_with_these_layers(self, net, data):
        technique = cl.allocation.per_layer("zero_pruning", "lenet_300_100")
        assert technique.source() == "cl.allocation.per_layer('zero_pruning', 'lenet_300_100')"
        assert technique.fits(cl.models.lenet_300_100()) and not technique.fits(cl.models.article_mlp())
        with pytest.raises(ValueError, match="other layers than fc1 300 × 784, fc2"):
            technique.apply(net)
        for model in (net, "lenet_5"):
            with pytest.raises(ValueError, match="model is"):
                cl.lab.explore(technique, model=model, data="mnist" if model == "lenet_5" else data)

    @pytest.mark.parametrize("name", ["zero_pruning", "low_rank", "quantization", "weight_sharing"])
    def test_a_layer_without_weights_has_no_slider(self, name):
        model = seeded(lambda: nn.Sequential(nn.Linear(0, 5), nn.Linear(8, 8)))
        technique = cl.allocation.per_layer(name, model)
        assert [one.name for one in technique.controls][:2] == ["layer_1", "budget"]
        assert technique.apply(model, budget=0.5)[0].weight.numel() == 0
        with pytest.raises(ValueError, match="no layer with weights"):
            cl.allocation.per_layer(name, model[:1])

    def test_lab(self, net, data, journal):
        technique = cl.allocation.per_layer("zero_pruning", net)
        lab = cl.lab.explore(technique, net, data, {"budget": 0.3}, steps=2, journal=journal, threads=False)
        assert lab.error is None and list(lab.controls["model"].options) == ["yours"]
        lab.controls["layer_1"].value = 0.9
        assert lab.error is None
        chosen = lab.results.iloc[-1]
        lines = lab.code.replace("...  # your model", "model").replace("...  # your Data", "data")
        exec(lines, names := {"model": net, "data": data})
        assert cl.storage.file_bytes(names["small"]) == chosen["file_bytes"]
        assert cl.measure.accuracy(names["small"], data.validation) == chosen["accuracy"]
        assert "per_layer('zero_pruning', model)" in lab.state

    def test_pickle_and_key(self, net, data):
        technique = cl.allocation.per_layer("zero_pruning", net)
        again = pickle.loads(pickle.dumps(technique))
        assert again.apply(net, layer_1=0.5)[1].weight.equal(technique.apply(net, layer_1=0.5)[1].weight)
        other = cl.allocation.per_layer("zero_pruning", net, parameter="threshold")
        assert other.depends != technique.depends and other.controls[0].default == 0

    def test_a_technique_of_your_own(self, net, data):
        def clip(model, limit=0.1, layers=None):
            twin = cl.layers.duplicate(model)
            for name in layers:
                twin.get_submodule(name).weight.data.clamp_(-limit, limit)
            return twin

        own = Technique("clip", clip, (Control("limit", 0.1, 0.0, 1.0, 0.05),))
        technique = cl.allocation.per_layer(own, net)
        assert technique.source is None and [one.name for one in technique.controls] == [
            "layer_1",
            "layer_3",
            "layer_5",
        ]
        small = technique.apply(net, layer_1=0.05, layer_3=1.0, layer_5=1.0)
        assert small[1].weight.abs().max().item() == pytest.approx(0.05) and small[3].weight.equal(net[3].weight)

    @pytest.mark.parametrize(
        "setting, told",
        [
            ({"layer_1": 2.0}, "sparsity is 2"),
            ({"layer_1": -1.0, "budget": 0.5}, "sparsity is -1"),
            ({"layer_1": "a"}, "layer_1 is 'a'"),
            ({"budget": 5}, "budget is 5"),
            ({"layer_9": 0.5}, "layer_9.*layer_1"),
        ],
    )
    def test_bad_settings(self, setting, told, net):
        with pytest.raises(ValueError, match=told):
            cl.allocation.per_layer("zero_pruning", net).apply(net, **setting)

    def test_errors(self, net):
        for given, told in [
            (("distillation", net), "no parameter `layers`"),
            (("zero_pruning", 3), "model is 3"),
            (("zero_pruning", "lenet"), "lenet"),
            (("zero_pruning", nn.Flatten()), "no layer with weights"),
            (("zero_pruning", net, ["9"]), "'9'"),
            (("zero_pruning", net, None, "criterion"), "parameter is 'criterion'"),
            (("zero_pruning", nn.ModuleDict({"criterion": nn.Linear(2, 2)})), "'criterion', which is a parameter"),
        ]:
            with pytest.raises(ValueError, match=told):
                cl.allocation.per_layer(*given)
