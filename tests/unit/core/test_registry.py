"""The closed registry of parts and systems."""

import pytest

from anyformer import core
from anyformer.core import registry


def test_every_part_is_found_by_its_name_and_slot():
    parts = registry.parts()
    assert all(part.name == name and registry.part(name) is part for name, part in parts.items())
    slots = {part.slot for part in parts.values()}
    assert sum(len(registry.parts(slot)) for slot in slots) == len(parts)
    assert set(registry.parts("linear")) >= {"linear"}


def test_every_system_names_its_models_once():
    systems = registry.systems()
    assert set(systems) >= {"vit", "swin", "convnext", "edgenext"}
    names = [name for system in systems.values() for name in system.names]
    assert len(names) == len(set(names))
    assert tuple(names) == registry.model_names()
    for slug, system in systems.items():
        assert registry.system(slug) is system
        assert system.paper.slug == slug
        assert set(system.small) <= set(system.names)
        assert set(system.published) <= set(system.names) - set(system.small)
        assert all(registry.system_of(name) is system for name in system.names)


@pytest.mark.parametrize(
    ("find", "name", "sentence"),
    [
        (registry.part, "layer_nrm", "no part is named 'layer_nrm'; did you mean layer_norm"),
        (registry.system, "vitt", "no system is named 'vitt'; did you mean vit"),
        (registry.system_of, "swin_mcro", "no model is named 'swin_mcro'; did you mean swin_micro"),
        (registry.part, "zzzz", "no part is named 'zzzz'"),
        (registry.part, "anyformer.core.model.Model", "no part is named"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is_near(find, name, sentence):
    with pytest.raises(core.UsageError) as caught:
        find(name)
    assert str(caught.value).startswith(sentence)


def test_two_parts_may_not_have_one_name(own_parts):
    with pytest.raises(ValueError, match="two parts are named 'layer_norm'"):

        class Other(core.Norm, name="layer_norm"):
            """Another norm of the same name."""

    assert registry.part("layer_norm").__name__ == "LayerNorm"
