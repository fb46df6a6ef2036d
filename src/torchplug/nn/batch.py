"""Refuse what batch normalization cannot do."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchplug.errors import explain


def check_batch(x: Tensor, norm: nn.Module | None, *, owner: str) -> None:
    """Raise if ``norm`` would normalize one value a channel in training.

    So would a group norm with one value a group, which torch refuses in evaluation too.

    A batch norm after a global pool sees one value for each image: with one image a device there
    is no variance, and torch's own text names neither the module nor the way out.

    Args:
        x: what the norm is about to receive, ``(N, C, ...)``.
        norm: the norm; anything but a batch norm in training and a group norm passes, and so does
            a synchronized one, which counts the images of all devices.
        owner: name of the module for the text.

    Raises:
        ValueError: for one value per channel, or per group.
    """
    is_local = isinstance(norm, _BatchNorm) and not isinstance(norm, nn.SyncBatchNorm)
    if is_local and norm is not None and norm.training and x.numel() == x.shape[1]:
        text = explain(
            f"{owner} normalizes a pooled vector over the batch and needs 2 images in training",
            f"an input of shape {tuple(x.shape)}",
            "use batches of 2 or more (drop_last=True), model.eval(), or another norm_layer=, "
            "such as one that normalizes each image by itself",
        )
        raise ValueError(text)
    if not isinstance(norm, nn.GroupNorm):
        return
    if x.numel() * norm.num_channels == x.shape[1] * norm.num_groups:
        text = explain(
            f"{owner} normalizes a pooled vector in groups, which need 2 values",
            f"{norm.num_groups} groups of {norm.num_channels} channels in one image",
            "pass a wider hidden layer (a smaller reduction=, hidden_channels=) or fewer groups",
        )
        raise ValueError(text)
