"""From a user's data and budget to a trained, exported, checked model.

The package is itself the function ``anyformer.fit``, see :func:`anyformer.fit.run.fit`: importing any of its modules binds
the package to that name, so the name must be able to do both.
"""

import sys
from types import ModuleType
from typing import Any


class _Fit(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See :func:`anyformer.fit.run.fit`."""
        from anyformer.fit.run import fit

        return fit(*arguments, **options)


sys.modules[__name__].__class__ = _Fit
