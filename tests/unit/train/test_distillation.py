"""Distillation: the paper's equations by hand, a teacher that stays as it is, students that learn."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import anyformer as af
from anyformer.core.errors import UsageError
from anyformer.data.batches import Batch
from anyformer.parts.heads.distilled import DistilledScores
from anyformer.train.classification import Classification
from anyformer.train.distillation import Distillation
from anyformer.train.loop import Role, Trainer
from anyformer.train.schedule import adamw


class Given(nn.Module):
    """A model that always gives the same."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, images):
        return self.scores


LABEL = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]], requires_grad=True)
TOKEN = torch.tensor([[0.0, 1.0, 4.0], [-2.0, 0.0, 2.0]], requires_grad=True)
TEACHER = torch.tensor([[1.0, 3.0, 0.0], [5.0, 1.0, 1.0]])
BATCH = Batch(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))


def probabilities(row, temperature=1.0):
    powers = [math.exp(score / temperature) for score in row.tolist()]
    return [power / sum(powers) for power in powers]


def loss(objective, student, teacher=TEACHER):
    return objective.losses("student", {"student": Given(student), "teacher": Given(teacher)}, BATCH, 0)


def hard(taught):
    """Equation 3: half the cross entropy with the label, half that with the teacher's class (1, then 0)."""
    truth = [-math.log(probabilities(LABEL[row])[label]) for row, label in enumerate((0, 1))]
    teaching = [-math.log(probabilities(taught[row])[label]) for row, label in enumerate((1, 0))]
    return sum(a / 2 + b / 2 for a, b in zip(truth, teaching, strict=True)) / 2


def soft(taught, temperature, weight):
    """Equation 2: (1 - lambda) CE + lambda tau^2 KL."""
    total = 0.0
    for row, label in enumerate((0, 1)):
        theirs, ours = probabilities(TEACHER[row], temperature), probabilities(taught[row], temperature)
        divergence = sum(p * math.log(p / q) for p, q in zip(theirs, ours, strict=True))
        total += -(1 - weight) * math.log(probabilities(LABEL[row])[label]) + weight * temperature**2 * divergence
    return total / 2


PAIR = DistilledScores(LABEL, TOKEN)


@pytest.mark.parametrize(
    ("by", "student", "taught"), [("token", PAIR, TOKEN), ("class", PAIR, LABEL), ("class", LABEL, LABEL)]
)
def test_equations_2_and_3_by_hand(by, student, taught):
    found = loss(Distillation(kind="hard", by=by, smoothing=0.0), student)
    assert found.item() == pytest.approx(hard(taught), rel=1e-6)
    for temperature, weight in ((3.0, 0.1), (1.0, 0.5)):
        objective = Distillation(kind="soft", by=by, temperature=temperature, weight=weight, smoothing=0.0)
        assert loss(objective, student).item() == pytest.approx(soft(taught, temperature, weight), rel=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_left_to_learn_from_it():
    assert loss(Distillation(kind="soft", weight=1.0), DistilledScores(LABEL, TEACHER)).item() == pytest.approx(
        0, abs=1e-6
    )
    truth = loss(Distillation(weight=0.0, smoothing=0.0), PAIR).item()
    expected = -sum(math.log(probabilities(LABEL[row])[label]) for row, label in enumerate((0, 1))) / 2
    assert truth == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_each_token_learns_from_its_own_source(kind):
    for weight, silent in ((0.0, 1), (1.0, 0)):
        found = loss(Distillation(kind=kind, weight=weight), PAIR)
        gradients = torch.autograd.grad(found, (LABEL, TOKEN), materialize_grads=True)
        assert [bool(gradient.any()) for gradient in gradients] == [silent != 0, silent != 1]


def test_only_true_labels_are_smoothed_and_half_precision_is_widened():
    smoothed = Distillation(smoothing=0.3)
    plain = loss(Distillation(smoothing=0.0), PAIR)
    logs = LABEL.log_softmax(1)
    change = 0.3 * (logs[[0, 1], [0, 1]] - logs.mean(1)).mean() / 2
    assert torch.allclose(loss(smoothed, PAIR), plain + change)
    narrow = loss(smoothed, DistilledScores(LABEL.bfloat16(), TOKEN.bfloat16()), TEACHER.bfloat16())
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, loss(smoothed, PAIR)), "these scores are numbers of bfloat16"


@pytest.mark.parametrize("settings", [{"weight": 1.5}, {"weight": -0.1}, {"temperature": 0.0}])
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(UsageError, match="a weight from 0 to 1 and a temperature above 0"):
        Distillation(**settings)


def test_a_student_without_a_distillation_token_is_told_the_remedy():
    with pytest.raises(UsageError, match='no distillation token to teach; use by="class"'):
        loss(Distillation(), LABEL)


def test_a_teacher_does_not_train():
    with pytest.raises(UsageError, match="give the teacher no optimizer"):
        Distillation().losses("teacher", {"student": Given(PAIR), "teacher": Given(TEACHER)}, BATCH, 0)


IMAGES = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3


def batch(step):
    rows = torch.arange(12) + 12 * (step % 2)
    return Batch(IMAGES[rows], LABELS[rows])


def student(by):
    """A small distilled DeiT, by editing the spec of a published one, or a plain model."""
    if by == "class":
        return af.create_model("deit_micro", num_classes=3, img_size=32, patch_size=8)
    tiny = af.create_model("deit_tiny_distilled_patch16_224", num_classes=3, img_size=32).spec
    return tiny.replace(blocks=tiny.blocks[:2]).build()


@pytest.mark.parametrize(("kind", "by"), [("hard", "token"), ("soft", "token"), ("hard", "class"), ("soft", "class")])
def test_a_short_training_lessens_the_loss_and_leaves_the_teacher_as_it_is(kind, by):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    model, losses = student(by), []
    roles = {"student": Role(model, adamw(model, 1e-3)), "teacher": Role(teacher)}
    trainer = Trainer(roles, Distillation(kind=kind, by=by), batch)
    trainer.run(12, progress=lambda step, values: losses.append(values["student"]))
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2])
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert (model.training, teacher.training) == (True, False)


def test_without_a_teacher_both_tokens_learn_from_the_labels():
    model, plain = student("token").train(), Classification(smoothing=0.1)
    found = plain.losses("student", {"student": model}, batch(0), 0)
    label, teacher = model(batch(0).images)
    mean = F.cross_entropy((label + teacher) / 2, batch(0).labels, label_smoothing=0.1)
    assert torch.allclose(found, mean)


def test_tokens_of_two_sources_come_to_two_answers():
    """The teacher names another class than the label; the tokens learn to disagree."""
    torch.manual_seed(0)

    class Contrary(nn.Module):
        def forward(self, images):
            return torch.eye(3)[(torch.arange(len(images)) + 1) % 3] * 5

    model = student("token")
    roles = {"student": Role(model, adamw(model, 1e-3)), "teacher": Role(Contrary())}
    Trainer(roles, Distillation(smoothing=0.0), lambda step: batch(0)).run(40)
    scores = model.train()(IMAGES[:12])
    assert torch.equal(scores.label.argmax(1), LABELS[:12])
    assert torch.equal(scores.teacher.argmax(1), (LABELS[:12] + 1) % 3)
