"""Non-Local: recordings of SlowFast (the authors' lab), mmcv, timm and AlexHex7's code."""

import torch
from torch import Tensor

from tests.oracles import Golden
from torchplug.modules import NonLocal

GOLDENS = (
    Golden("nl__slowfast__softmax_pool122_t1_c24", "official", (24,), {"dimension": 3}),
    Golden("nl__mmcv__embgauss_scale_bn_c32_r2", "mmcv", (32,), {"subsample": "none"}),
    Golden(
        "nl__mmcv__dotproduct_bn_c30_r3",
        "mmcv",
        (30,),
        {"reduction": 3, "pairwise": "dot_product", "subsample": "none"},
    ),
    Golden(
        "nl__mmcv__gaussian_sub_c18_r2",
        "mmcv",
        (18,),
        {"pairwise": "gaussian", "scale": "none", "subsample": "after", "norm_layer": None},
    ),
    Golden(
        "nl__timm__default_c40",
        "timm",
        (40,),
        {"hidden_channels": 8, "scale": "channels", "subsample": "none"},
    ),
    Golden(
        "nl__timm__noscale_c36_r4",
        "timm",
        (36,),
        {"reduction": 4, "scale": "none", "subsample": "none"},
    ),
    Golden(
        "nl__alexhex7__concat_bn_c20",
        "alexhex7",
        (20,),
        {"pairwise": "concatenation", "subsample": "none"},
    ),
)


def reference(module: NonLocal, x: Tensor) -> Tensor:
    """Sections 3.1 to 3.3 of the paper, one pair of positions at a time."""
    return torch.stack([block(module, sample) for sample in x])


def block(module: NonLocal, sample: Tensor) -> Tensor:
    source = pool(sample) if module.subsample == "before" else sample
    query = embed(module.query, sample)
    key, value = embed(module.key, source), embed(module.value, source)
    if module.subsample == "after":
        key, value = pool(key), pool(value)
    keys, values = key.flatten(1).T, value.flatten(1).T
    result = torch.empty_like(sample)
    for h in range(sample.shape[1]):
        for w in range(sample.shape[2]):
            gathered = gather(module, query[:, h, w], keys, values)
            z = module.expand.weight.flatten(1) @ gathered + module.expand.bias
            if module.norm is not None:
                norm = module.norm
                z = (z - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
                z = z * norm.weight + norm.bias
            result[:, h, w] = sample[:, h, w] + z
    return result


def gather(module: NonLocal, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    if module.pairwise == "concatenation":
        weight = module.project.weight.flatten()
        weights = [(weight @ torch.cat([query, key])).clamp(min=0) / len(keys) for key in keys]
    elif module.pairwise == "dot_product":
        weights = [query @ key / len(keys) for key in keys]
    else:
        shares = [torch.exp(query @ key * module.scale) for key in keys]
        weights = [share / sum(shares) for share in shares]
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def embed(layer: torch.nn.Conv2d | None, sample: Tensor) -> Tensor:
    if layer is None:
        return sample
    mixed = torch.einsum("oc,chw->ohw", layer.weight.flatten(1), sample)
    return mixed + layer.bias[:, None, None]


def pool(sample: Tensor) -> Tensor:
    height, width = sample.shape[1] // 2, sample.shape[2] // 2
    rows = [
        torch.stack(
            [
                sample[:, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].flatten(1).max(1).values
                for w in range(width)
            ],
            dim=-1,
        )
        for h in range(height)
    ]
    return torch.stack(rows, dim=1)
