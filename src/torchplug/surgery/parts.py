"""Which names of a plugged model belong to its base, and which to plugs."""

from torch import nn

from torchplug.surgery.attach import Holder


class Parts:
    """Tells base and plugs apart by name; a host's own child may be called like the holder."""

    def __init__(self, model: nn.Module) -> None:
        self._holders = {
            path
            for path, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, Holder)
        }

    def is_plug(self, name: str) -> bool:
        """Whether the module, parameter or buffer called ``name`` belongs to a plug."""
        words = name.split(".")
        return any(".".join(words[:end]) in self._holders for end in range(1, len(words) + 1))
