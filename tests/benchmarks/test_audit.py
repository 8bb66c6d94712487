"""benchmarks.audit: the verdicts, the shipped measurements, and the page that quotes them."""

import pandas as pd
import pytest
import torch

import compresslab as cl
from benchmarks import audit


@pytest.fixture(scope="module")
def runs():
    """Return the measurements that ship."""
    return pd.read_csv(audit.CSV)


@pytest.mark.parametrize(
    "losses, verdict",
    [([0.1, 0.2], "holds"), ([0.62, 0.62], "holds"), ([0.7, 0.9], "does not hold"), ([0.6, 0.7], "cannot tell")],
)
def test_a_claim_holds_only_if_all_seeds_agree(losses, verdict):
    assert audit.judge(pd.Series(losses), 0.62) == verdict


def test_factors_multiplied_back_have_the_old_shape_and_the_low_rank():
    model = cl.models.article_mlp(seed=0)
    product = audit.multiply_back(model, None, rank=5)
    assert cl.layers.count_parameters(product) == cl.layers.count_parameters(model)
    assert torch.linalg.matrix_rank(product.fc2.weight) == 5
    assert torch.linalg.matrix_rank(model.fc2.weight) > 5


def test_every_arm_has_its_seeds(runs):
    arms = runs[runs["experiment"] != audit.MAP].groupby(["experiment", "arm", "stage"])["seed"].nunique()
    doubled = [arm for arm in arms.index.unique("arm") if arm.endswith("twice as long")]
    assert len(doubled) == 2 and set(arms.loc[:, doubled]) == {audit.MAP_SEEDS}
    assert set(arms.drop(["rank 40, multiplied back", *doubled], level="arm")) == {audit.SEEDS}
    points = runs[runs["experiment"] == audit.MAP].groupby(["arm", "setting", "stage"])["seed"].nunique()
    assert set(points) == {audit.MAP_SEEDS}


def test_claims_are_judged_on_runs_of_equal_length(runs):
    """The students alone are trained for longer: they start from nothing."""
    epochs = runs[runs["stage"] == "retrained"].groupby("experiment")["epochs"].agg(set)
    assert epochs["dense"] == epochs["zero pruning"] == epochs["low rank"] == epochs["quantization"]
    assert len(epochs["dense"]) == 1


def test_the_page_quotes_the_measurements(runs):
    page = (audit.ROOT / "docs" / "article.md").read_text()
    for make_table in (audit.judge_claims, audit.judge_controls, audit.judge_widths, audit.list_choices):
        assert audit.write_markdown(make_table(runs)) in page


def test_the_map_is_drawn(runs, tmp_path):
    audit.draw_map(runs, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000
