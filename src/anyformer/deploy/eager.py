"""Models run by torch itself: operator by operator, or compiled."""

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from anyformer.core.errors import AnyformerError
from anyformer.deploy.silence import cause, silenced


class InPrecision(nn.Module):
    """A copy of a model that computes in another precision, with float32 images and logits outside."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.kind = getattr(torch, precision)
        self.model = copy.deepcopy(model).cpu().eval().to(self.kind)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        return self.model(images.to(self.kind)).float()


def runner(
    model: nn.Module, example: Tensor, *, compiled: bool, precision: str, threads: int | None
) -> Callable[[Tensor], Tensor]:
    """What ``runtime.runner`` gives for the runtimes ``eager`` and ``compiled``; see there.

    Compiled with the weights as constants, as they no longer change: on a CPU that is worth as much as all the rest.

    Raises:
        AnyformerError: torch cannot compile the model.
    """
    held = InPrecision(model, precision).eval()
    function: Callable[[Tensor], Tensor] = held

    def run(images: Tensor) -> Tensor:
        with torch.no_grad(), on_threads(threads):
            return function(images)

    if compiled:
        try:
            with silenced():
                function = torch.compile(held, options={"freezing": True})
                run(example)
        except Exception as error:  # every stage of the compiler raises its own kind
            raise AnyformerError(f"torch cannot compile {type(model).__name__}: {cause(error)}") from error
    return run


@contextlib.contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """So many threads for torch in this block; as many as before it when None."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
