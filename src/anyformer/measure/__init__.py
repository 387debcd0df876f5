"""What a model costs: parameters, multiply-adds, latency, memory, energy, and ratios with an interval.

The package is itself the function ``anyformer.measure``, see :func:`anyformer.measure.run.measure`: importing any of its
modules binds the package to that name, so the name must be able to do both.
"""

import sys
from types import ModuleType
from typing import Any


class _Measure(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See :func:`anyformer.measure.run.measure`."""
        from anyformer.measure.run import measure

        return measure(*arguments, **options)


sys.modules[__name__].__class__ = _Measure
