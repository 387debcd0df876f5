"""HGRN is its recurrence, whole or as a stream, padded or packed; its floors rise with the layers."""

import pytest
import torch

from .build_part import build, config, on_grid, random
from .linear_mixers import CHECKS, DIM, rms, silu

LAYERS = 4


def made(layer=2, **settings):
    floors = config("forget_floors", layers=LAYERS)
    return build("hgrn", **{"dim": DIM, "inner": 6, "layer": layer, "floors": floors, **settings})


def floor_of(part):
    """Section 3.3: a softmax over the layers, summed up to this one, without the first layer's share."""
    shares = part.floors.weight.exp() / part.floors.weight.exp().sum(0)
    return shares[1 : part.config.layer + 1].sum(0)


def written_out(part, x, floor):
    out = []
    for row in x:
        entering, forget, gate = (row @ part.in_proj.weight.T).chunk(3, -1)
        kept = floor + (1 - floor) * torch.sigmoid(forget)
        h, ys = torch.zeros_like(kept[0]), []
        for t in range(len(row)):
            h = kept[t] * h + (1 - kept[t]) * silu(entering[t])
            ys.append(h)
        out.append((rms(part.norm, torch.stack(ys)) * silu(gate)) @ part.out_proj.weight.T)
    return torch.stack(out)


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_as_written_out(layer):
    part, x = made(layer), random(2, 9, DIM)
    torch.testing.assert_close(part(x, on_grid(9)), written_out(part, x, floor_of(part)), rtol=1e-10, atol=1e-10)


def test_without_floors_gates_start_at_0():
    part, x = made(floors=None), random(2, 9, DIM)
    torch.testing.assert_close(part(x, on_grid(9)), written_out(part, x, 0.0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_holds_that(check):
    check(made())


@pytest.mark.parametrize("logit", [-1e4, 0.0, 40.0, 1e4])
def test_gates_far_open_and_far_closed_are_finite_with_their_gradients(logit):
    """At the far end of a sigmoid nothing enters or nothing is kept; neither is divided by."""
    for part in (made(), made(floors=None)):
        part = part.float()
        x = random(1, 5, DIM).float().requires_grad_()
        part.in_proj.weight.data[6:12] = 0
        part.in_proj.weight.data[6:12, 0] = logit
        x.data[..., 0] = 1.0
        y = part(x, on_grid(5))
        y.sum().backward()
        assert y.isfinite().all()
        assert x.grad.isfinite().all()


def test_floors_rise_from_layer_to_layer():
    part = build("forget_floors", layers=LAYERS, dim=5)
    floors = torch.stack([part(layer)[0].exp() for layer in range(1, LAYERS)])
    assert (floors.diff(dim=0) > 0).all()
    assert (floors > 0).all()
    assert (floors < 1).all()
    for layer in range(1, LAYERS):
        floor, rest = part(layer)
        torch.testing.assert_close(floor.exp() + rest.exp(), torch.ones(5, dtype=torch.float64))
