"""Attention across sites: who sees whom, where they are, and that nothing else matters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llueve.errors import UsageError
from llueve.model.classifier import TimerXLForClassification
from llueve.model.heads import VariablesHead
from llueve.model.sites import Scenes, SiteAttention, relations
from llueve.model.timer_xl import TimerXL
from llueve.sphere import distance_km

STEPS, VARIABLES = 4, 3


def build(sites=6):
    """A model whose every weight is random, so that no part of it is silent."""
    torch.manual_seed(0)
    encoder = TimerXL(patch_length=4, width=16, layers=1, heads=2, feed_forward=16)
    attention = SiteAttention(16, layers=2, heads=2, sites=sites, dropout=0.1)
    model = TimerXLForClassification(encoder, 2, VariablesHead(16, VARIABLES, 2, 2, 0.1, (2,), attention))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def rows(sizes, seed=1):
    """Windows of scenes with these numbers of sites."""
    generator = torch.Generator().manual_seed(seed)
    number = sum(sizes)
    scene_B = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    vector_B = torch.cat([torch.randperm(6, generator=generator)[:size] + 1 for size in sizes])
    position_B2 = torch.stack((-30.0 + vector_B, 140.0 + 2.0 * vector_B), dim=-1)
    x_BLC = torch.randn(number, STEPS, VARIABLES, generator=generator)
    facts_BF = torch.randn(number, 2, generator=generator)
    return x_BLC, facts_BF, Scenes(scene_B, vector_B, position_B2)


def logits(model, x_BLC, facts_BF, scenes, chosen=slice(None)):
    with torch.no_grad():
        return model(x_BLC[chosen], None, facts_BF[chosen], Scenes(*(each[chosen] for each in scenes)))


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_permuted_sites_have_permuted_answers(sizes, seed):
    model, (x_BLC, facts_BF, scenes) = build(), rows(sizes, seed)
    order = torch.randperm(len(x_BLC), generator=torch.Generator().manual_seed(seed))
    found = logits(model, x_BLC, facts_BF, scenes, order)
    torch.testing.assert_close(found, logits(model, x_BLC, facts_BF, scenes)[order], rtol=1e-4, atol=1e-5)


@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_another_scene_has_no_influence_by_one_bit(sizes, seed):
    model, (x_BLC, facts_BF, scenes) = build(), rows(sizes, seed)
    before = logits(model, x_BLC, facts_BF, scenes)
    other_B = scenes.scene_B == len(sizes) - 1
    changed = torch.where(other_B[:, None, None], x_BLC * -3 + 1, x_BLC)
    after = logits(model, changed, facts_BF, scenes)
    assert torch.equal(before[~other_B], after[~other_B])
    assert not torch.equal(before[other_B], after[other_B])


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_scenes_of_one_batch_are_those_of_batches_of_their_own(sizes, seed):
    """Places that a smaller scene leaves empty have no influence; a scene of one site is a site alone."""
    model, (x_BLC, facts_BF, scenes) = build(), rows(sizes, seed)
    together = logits(model, x_BLC, facts_BF, scenes)
    for number in range(len(sizes)):
        chosen = scenes.scene_B == number
        alone = logits(model, x_BLC, facts_BF, scenes, chosen)
        torch.testing.assert_close(alone, together[chosen], rtol=1e-4, atol=1e-5)


def test_sites_see_their_neighbours_and_where_they_are():
    model, (x_BLC, facts_BF, scenes) = build(), rows([4])
    before = logits(model, x_BLC, facts_BF, scenes)
    changed = x_BLC.clone()
    changed[3] += 1
    assert not torch.equal(logits(model, changed, facts_BF, scenes)[0], before[0])
    moved = scenes.position_B2.clone()
    moved[3, 1] += 5
    assert not torch.equal(logits(model, x_BLC, facts_BF, scenes._replace(position_B2=moved))[0], before[0])


def test_a_site_without_training_has_no_vector():
    """Vectors start at zero: at the start, a new site is like any other."""
    torch.manual_seed(0)
    attention = SiteAttention(16, layers=1, heads=2, sites=3, dropout=0.0).eval()
    row_BW, position_B2 = torch.randn(2, 16), torch.tensor([[10.0, 20.0], [11.0, 21.0]])
    given_scenes = [
        Scenes(torch.zeros(2, dtype=torch.int64), torch.tensor(each), position_B2) for each in ([1, 2], [1, 0])
    ]
    assert torch.equal(*(attention(row_BW, each) for each in given_scenes))
    with torch.no_grad():
        attention.vector_VW.normal_()
        known, unknown = (attention(row_BW, each)[1] for each in given_scenes)
        assert not torch.equal(known, unknown)
        attention.vector_VW[0] = 100.0  # index 0 belongs to nobody
        assert torch.equal(attention(row_BW, given_scenes[1])[1], unknown)


def test_every_weight_of_the_attention_is_trained():
    model, (x_BLC, facts_BF, scenes) = build().train(), rows([4, 3, 5])
    answer = model.answer(model.pool(x_BLC), facts_BF, scenes)
    (answer.logits_BK.square().sum() + answer.future_BC.square().sum()).backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.head.parameters())


def test_a_step_drops_sites_by_the_random_generator_alone():
    model, (x_BLC, facts_BF, scenes) = build().train(), rows([5, 6])
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model(x_BLC, None, facts_BF, scenes).detach())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_relative_positions_on_the_sphere():
    """Distances as the haversine formula has them; east of it is east, also across the date line and near a pole."""
    position = torch.tensor([[-12.0, -77.0], [-13.5, -72.0], [0.0, 179.5], [0.0, -179.5], [89.0, 0.0], [-90.0, 30.0]])
    found = relations(position)
    latitude, longitude = position.double().numpy().T
    distance = torch.from_numpy(distance_km(latitude[:, None], longitude[:, None], latitude, longitude))
    torch.testing.assert_close(found[..., :2].norm(dim=-1) * 1000, distance, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(found[..., 2], (distance / 50).log1p(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[..., 3], (-distance / 300).exp())
    torch.testing.assert_close(found[..., 4], (-distance / 1000).exp())
    assert found[0, 1, 0] > 0 > found[0, 1, 1]  # Cusco is east and south of Lima
    assert found[2, 3, 0] == pytest.approx(0.1112, abs=1e-3)  # one degree to the east, across the date line
    assert found.isfinite().all() and not found[range(6), range(6), :3].any()


def test_scenes_are_needed():
    model, (x_BLC, facts_BF, _) = build(), rows([2])
    with pytest.raises(UsageError, match="give scenes"):
        model(x_BLC, None, facts_BF)
