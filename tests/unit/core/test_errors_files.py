"""Errors of files that the system does not hand out."""

from pathlib import Path

import pytest

import anyformer as af
from anyformer.core.errors import UsageError


@pytest.mark.parametrize("name", ["pattern.yaml", "pattern.json"])
def test_a_pattern_that_may_not_be_read(tmp_path, monkeypatch, name):
    file = tmp_path / name
    file.write_text("skeleton: isotropic")

    def refused(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)  # the superuser may read everything
    with pytest.raises(UsageError, match=rf"cannot read .*{name} \(Permission denied\)"):
        af.build_hybrid(file)
