"""The loop learns, steps every role of an objective by its own optimizer, and stops at what is not finite."""

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.data.batches import Batch, Batches, data_config
from anyformer.data.images import load
from anyformer.data.split import split
from anyformer.train.classification import Classification, accuracy, predict_logits
from anyformer.train.log import Log
from anyformer.train.loop import Role, Trainer
from anyformer.train.schedule import WarmupCosine, adamw

from .small_run import LABELS, make_trainer, outcome


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_digits_are_learnt():
    data = load("digits")
    parts = split(data.labels, seed=0)
    config = data_config(data.images[parts.train])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
    before = accuracy(predict_logits(model, data.images[parts.test], config), data.labels[parts.test])
    batches = Batches(data.images[parts.train], data.labels[parts.train], config, size=64, seed=0)
    role = Role(model, adamw(model, 0.01), WarmupCosine(steps=200, warmup=10))
    Trainer({"student": role}, Classification(), batches).run(200)
    after = accuracy(predict_logits(model, data.images[parts.test], config), data.labels[parts.test])
    assert before < 0.4
    assert after > 0.94


class GeneratorAndCritic:
    """A Wasserstein pair in one dimension: the critic tells made numbers from real ones, the generator deceives it."""

    def losses(self, role: str, models: Mapping[str, nn.Module], batch: Tensor, step: int) -> Tensor:
        made = models["generator"](torch.randn(len(batch), 1))
        if role == "generator":
            return -models["critic"](made).mean()
        return (
            models["critic"](made).mean() - models["critic"](batch).mean() + models["critic"].weight.square().sum() / 2
        )


def real(step: int) -> Tensor:
    return 4 + 0.1 * torch.randn(64, 1, generator=torch.Generator().manual_seed(step))


def test_generator_and_critic_are_two_roles_of_one_objective():
    torch.manual_seed(0)
    models = {"generator": nn.Linear(1, 1), "critic": nn.Linear(1, 1)}
    rates = {"generator": 0.05, "critic": 0.5}
    roles = {name: Role(model, torch.optim.SGD(model.parameters(), rates[name])) for name, model in models.items()}
    Trainer(roles, GeneratorAndCritic(), real).run(300)
    assert models["generator"].bias.item() == pytest.approx(4, abs=0.3)


class Distillation:
    """The student imitates the teacher."""

    def losses(self, role: str, models: Mapping[str, nn.Module], batch: Tensor, step: int) -> Tensor:
        assert role == "student"
        return F.mse_loss(models["student"](batch), models["teacher"](batch))


def test_role_without_an_optimizer_stays_as_it_is():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    student = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    old = weights(student)
    roles = {"student": Role(student, adamw(student)), "teacher": Role(teacher)}
    Trainer(roles, Distillation(), real).run(3)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not torch.equal(weights(student), old)
    assert (student.training, teacher.training) == (True, False)


class Together:
    """One loss through both models for both roles."""

    def losses(self, role: str, models: Mapping[str, nn.Module], batch: Tensor, step: int) -> Tensor:
        return models["second"](models["first"](batch)).square().mean()


def test_each_role_steps_its_own_parameters_in_order():
    """Equal to the steps written out: the second role sees the first one's new weights, and no foreign gradient."""
    torch.manual_seed(0)
    made = {name: nn.Linear(1, 1) for name in ("first", "second")}
    twins = {name: nn.Linear(1, 1) for name in made}
    for name, model in made.items():
        twins[name].load_state_dict(model.state_dict())
    rates = {"first": 0.01, "second": 0.02}
    roles = {name: Role(model, torch.optim.SGD(model.parameters(), rates[name])) for name, model in made.items()}
    Trainer(roles, Together(), real, clip=math.inf).run(4)
    for step in range(4):
        for name, twin in twins.items():
            loss = Together().losses(name, twins, real(step), step)
            gradients = torch.autograd.grad(loss, list(twin.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
                    parameter -= rates[name] * gradient
    for name in made:
        torch.testing.assert_close(weights(made[name]), weights(twins[name]))


def test_schedule_clip_and_unused_parameters():
    model = nn.Sequential(nn.Linear(1, 1))
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    before = weights(model[0])
    role = Role(model, torch.optim.SGD(model.parameters(), lr=2.0), WarmupCosine(steps=1, warmup=4))

    class Large:
        def losses(self, role, models, batch, step):
            return 1e6 * models[role](batch).square().mean()

    Trainer({"only": role}, Large(), real, clip=0.5).run(1)
    assert (weights(model[0]) - before).norm().item() == pytest.approx(2.0 * 0.25 * 0.5, rel=1e-4)
    assert (model.unused == 1).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_is_told_and_not_saved(tmp_path, value):
    class Broken(Classification):
        def losses(self, role, models, batch, step):
            return super().losses(role, models, batch, step) * (value if step == 7 else 1)

    trainer = make_trainer(tmp_path)
    trainer.objective = Broken()
    with pytest.raises(AnyformerError, match=f"loss of the student is {value} .* at step 7; lower the learning rate"):
        trainer.run(20)
    trainer.store.close()
    trainer = make_trainer(tmp_path)
    assert trainer.step == 5
    trainer.store.close()


def test_best_evaluation_is_kept_with_its_weights():
    scores = iter([0.1, 0.7, 0.7, 0.3])
    seen = []

    def evaluate(models):
        assert not models["student"].training
        seen.append(weights(models["student"]))
        return next(scores)

    trainer = make_trainer(every=2, evaluate=evaluate)
    trainer.run(8)
    assert (trainer.best.score, trainer.best.step) == (0.7, 4)
    kept = trainer.best.weights["student"]
    names = [name for name, _ in trainer.roles["student"].model.named_parameters()]
    assert torch.equal(torch.cat([kept[name].flatten() for name in names]), seen[1])
    assert trainer.roles["student"].model.training


def test_log_has_means_rates_and_scores(tmp_path):
    losses = []
    trainer = make_trainer(log=Log(tmp_path / "log.jsonl"))
    trainer.run(12, progress=lambda step, values: losses.append((step, values["student"])))
    first, second = trainer.log.read()
    assert [step for step, _ in losses] == list(range(1, 13))
    assert second["loss"]["student"] == pytest.approx(sum(loss for _, loss in losses[6:]) / 6)
    assert second["lr"]["student"] == pytest.approx(0.01 * WarmupCosine(steps=40, warmup=5)(11))
    assert second["score"] == pytest.approx(round(second["score"] * len(LABELS)) / len(LABELS))
    assert 0 < first["seconds"] <= second["seconds"]


def test_bfloat16_trains_near_float32_with_float32_parameters():
    runs = {bf16: make_trainer(bf16=bf16) for bf16 in (False, True)}
    for trainer in runs.values():
        trainer.run(6)
        assert all(parameter.dtype == torch.float32 for parameter in trainer.roles["student"].model.parameters())
    full, half = (weights(trainer.roles["student"].model) for trainer in runs.values())
    assert not torch.equal(full, half)
    assert (full - half).norm() < 0.1 * full.norm()


def test_same_seed_same_bits_and_other_seed_other_dropout():
    """Without store or log, which must not change what is learnt."""
    results = []
    for seed in (3, 3, 4):
        trainer = make_trainer(seed=seed)
        trainer.run(6)
        results.append(outcome(trainer)["model"]["5.weight"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_label_smoothing_and_accuracy():
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    batch = Batch(logits, torch.tensor([0, 0]))
    loss = Classification(smoothing=0.2).losses("only", {"only": nn.Identity()}, batch, 0)
    logs = logits.log_softmax(1)
    torch.testing.assert_close(loss, -(0.9 * logs[:, 0] + 0.1 * logs[:, 1]).mean())
    assert accuracy(*batch) == 0.5


def test_accumulated_gradients_are_those_of_the_batch():
    """Without batch norm, of which the parts see other statistics; 64 rows in 5 parts of 13 and 12."""
    results = []
    for parts in (1, 5):
        torch.manual_seed(0)
        models = {"first": nn.Linear(1, 1), "second": nn.Linear(1, 1)}
        roles = {name: Role(model, torch.optim.SGD(model.parameters(), 0.01)) for name, model in models.items()}
        losses = []
        trainer = Trainer(roles, Together(), real, accumulate=parts)
        trainer.run(5, progress=lambda step, values, losses=losses: losses.append(list(values.values())))
        results.append((torch.tensor(losses), weights(models["first"]), weights(models["second"])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(UsageError, match=r"accumulate must be at least 1 and ema in .*, got 0 and None"):
        make_trainer(accumulate=0, ema=None)


def test_averaged_weights_are_evaluated_and_given_but_not_trained():
    def evaluate(models):
        seen.append({name: value.clone() for name, value in models["student"].state_dict().items()})
        return 0.0

    plain, averaged, seen = make_trainer(ema=None), make_trainer(ema=0.75, every=1, evaluate=evaluate), []
    expected = {name: value.clone() for name, value in averaged.models["student"].state_dict().items()}
    for step in range(12):
        averaged.run(step + 1)
        weight = 1 - min(0.75, (1 + step) / (10 + step))
        for name, value in averaged.models["student"].state_dict().items():
            expected[name] = torch.lerp(expected[name], value, weight) if value.is_floating_point() else value.clone()
        for name, value in expected.items():
            torch.testing.assert_close(seen[-1][name], value)
            assert torch.equal(averaged.weights("student")[name], seen[-1][name])
    plain.run(12)
    for name, value in plain.models["student"].state_dict().items():
        assert torch.equal(averaged.models["student"].state_dict()[name], value)
        assert torch.equal(plain.weights("student")[name], value)
    assert not torch.equal(averaged.weights("student")["5.weight"], plain.weights("student")["5.weight"])
    assert torch.equal(averaged.best.weights["student"]["5.weight"], seen[0]["5.weight"])
    with pytest.raises(UsageError, match=r"ema in \[0, 1\), got 1 and 1"):
        make_trainer(ema=1.0)


def test_device_is_where_models_and_batches_go():
    trainer = make_trainer(device="cpu")
    trainer.run(2)
    assert weights(trainer.models["student"]).device == torch.device("cpu")
    with pytest.raises(UsageError, match="there is no device 'nowhere'"):
        make_trainer(device="nowhere")
