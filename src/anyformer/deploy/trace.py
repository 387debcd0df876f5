"""The graph of a model for any batch size, from which every file is made."""

import torch
from torch import Tensor, nn

from anyformer.core.errors import AnyformerError
from anyformer.deploy.silence import cause, silenced


def trace(model: nn.Module, example: Tensor, form: str) -> torch.export.ExportedProgram:
    """The program of a model in evaluation mode, for images like the example in batches of any size.

    Args:
        model: maps images to logits.
        example: images of the size to come; only their shape is looked at.
        form: what is made of it, for errors: ``"to ONNX"``.

    Raises:
        AnyformerError: the model decides by its data, or by the size of the batch.
    """
    # Nobody's picture, as programs keep it; and two of them, because a batch of one would be taken for a constant.
    pair = torch.zeros(2, *example.shape[1:])
    with silenced(), torch.no_grad():
        try:
            return torch.export.export(model, (pair,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        except Exception as error:  # every stage of the exporter raises its own kind
            why = cause(error)
            if why.startswith("Constraints violated"):
                why = "its code fixes the size of the batch, as len(x) does where x.shape[0] would not"
            raise AnyformerError(f"cannot export {type(model).__name__} {form}: {why}") from error
