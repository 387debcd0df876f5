"""The file of measured costs says when it cannot be what it should."""

from pathlib import Path

import pytest

from anyformer.core.errors import AnyformerError
from anyformer.fit.costs import CostTable


@pytest.mark.parametrize("content", ["", "[]", '{"setting": {}}', '{"setting": {}, "costs": {"vit": {"speed": 1}}}'])
def test_a_file_that_is_no_table_of_costs_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "costs.json").write_text(content)
    with pytest.raises(AnyformerError, match=r"costs\.json cannot be read as measured costs .*; delete it"):
        CostTable(tmp_path / "costs.json", {})
