"""Form: messages along the edges of a mesh and, in a set of their own, along contacts between what is not connected.

As in HCMT (arXiv:2312.12467, section 4.2): each edge set has its own weights, and a node takes the sums side by side.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core

Edges = tuple[Tensor, Tensor, Tensor]


class ToyContactMesh(core.TokenMixer, name="toy_contact_mesh"):
    """``update([x_r, sum over mesh of m(x_s, x_r, e), sum over contact of c(x_s, x_r, e)])`` for every receiver r.

    Shapes: ``(1, nodes, dim)`` to the same. Cost: ``hidden * (2 dim + features)`` multiply-adds an edge.
    """

    class Config(core.Config):
        dim: int = core.bound()
        features: int
        hidden: int = core.derived(lambda c: c.dim)
        mesh: core.Config = core.linear()
        contact: core.Config = core.linear()
        update: core.Config = core.linear()

    axes = {
        "mesh.weight": "hidden (sender:dim + receiver:dim + edge:features)",
        "contact.weight": "hidden (sender:dim + receiver:dim + edge:features)",
        "update.weight": "dim (node:dim + mesh:hidden + contact:hidden)",
    }

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        nodes = x[0]
        gathered = [nodes]
        for name in ("mesh", "contact"):
            senders, receivers, features = ctx.edges[name]
            message = getattr(self, name)(torch.cat((nodes[senders], nodes[receivers], features), dim=1), "gelu")
            gathered.append(message.new_zeros(len(nodes), self.config.hidden).index_add(0, receivers, message))
        return self.update(torch.cat(gathered, dim=1))[None]


def made() -> ToyContactMesh:
    torch.manual_seed(0)
    part = core.build(ToyContactMesh.Config(dim=4, features=3, hidden=6)).double()
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return part


def edges(pairs: list[tuple[int, int]]) -> Edges:
    senders, receivers = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    return senders, receivers, torch.randn(len(pairs), 3, dtype=torch.float64)


# two strips of three nodes each, which touch at nodes 2 and 3; receiver 1 has two senders
MESH = [(0, 1), (1, 0), (2, 1), (1, 2), (3, 4), (4, 3), (4, 5), (5, 4)]
CONTACT = [(2, 3), (3, 2)]


def scene(contact: list[tuple[int, int]] = CONTACT) -> tuple[Tensor, core.Context]:
    torch.manual_seed(1)
    x = torch.randn(1, 6, 4, dtype=torch.float64)
    return x, core.Context(edges={"mesh": edges(MESH), "contact": edges(contact)})


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_equals_a_walk_over_the_edges():
    part, (x, ctx) = made(), scene()
    for receiver in range(6):
        parts = [x[0, receiver]]
        for name in ("mesh", "contact"):
            linear, total = getattr(part, name), torch.zeros(6, dtype=torch.float64)
            for s, r, feature in zip(*ctx.edges[name], strict=True):
                if r == receiver:
                    total = total + F.gelu(linear.weight @ torch.cat((x[0, s], x[0, r], feature)) + linear.bias)
            parts.append(total)
        same(part(x, ctx)[0, receiver], part.update.weight @ torch.cat(parts) + part.update.bias)


@pytest.mark.parametrize("contact", [CONTACT, []], ids=["contact", "no contact"])
def test_naming_nodes_and_listing_edges_otherwise_changes_nothing(contact):
    part, (x, ctx) = made(), scene(contact)
    order = torch.tensor([3, 0, 5, 1, 4, 2])  # the node that stands at each new place
    place = order.argsort()
    renamed = {}
    for name, (senders, receivers, features) in ctx.edges.items():
        listing = torch.randperm(len(senders))
        renamed[name] = (place[senders][listing], place[receivers][listing], features[listing])
    same(part(x[:, order], core.Context(edges=renamed)), part(x, ctx)[:, order])


def test_bodies_feel_each_other_through_contacts_alone():
    part = made()
    reached = {}
    for name, contact in (("apart", []), ("touching", CONTACT)):
        x, ctx = scene(contact)
        x.requires_grad_()
        y = part(part(part(x, ctx), ctx), ctx)
        (gradient,) = torch.autograd.grad(y[0, 5].sum(), x)
        reached[name] = (gradient[0].abs().sum(dim=1) > 0).tolist()
    assert reached == {"apart": [False] * 3 + [True] * 3, "touching": [False] * 2 + [True] * 4}


def test_contact_has_weights_of_its_own():
    part, (x, ctx) = made(), scene()
    swapped = core.Context(edges={"mesh": ctx.edges["contact"], "contact": ctx.edges["mesh"]})
    assert (part(x, ctx) - part(x, swapped)).abs().max() > 0.1
