"""RFB: recordings of the authors' seven forms."""

import torch
from torch import Tensor

from tests.oracles import Golden
from tests.oracles.naive_layers import run
from torchplug.modules import RFB

GOLDENS = (
    Golden("rfb__official__rfb_s2_visual2_scale1", "official", (32, 20), {"stride": 2}),
    Golden("rfb__official__rfbs_s1", "official", (24, 18), {"variant": "small"}),
    Golden("rfb__official__mobile_rfb_identity", "official", (32, 32), {"variant": "mobile"}),
    Golden(
        "rfb__official__mobile_rfb_s2",
        "official",
        (32, 16),
        {"variant": "mobile", "stride": 2, "scale": 0.1},
    ),
    Golden("rfb__official__mobile_rfb_a", "official", (24, 24), {"variant": "mobile_small"}),
    Golden("rfb__official__E_rfb_a", "official", (32, 16), {"variant": "extended_small"}),
    Golden("rfb__official__E_rfb_s2", "official", (32, 14), {"variant": "extended", "stride": 2}),
    Golden("rfb__official__E_rfb_c", "official", (32, 12), {"variant": "extended_c", "scale": 0.1}),
)


def reference(module: RFB, x: Tensor) -> Tensor:
    """Figure 4, one sample and one branch at a time."""
    results = []
    for sample in x:
        found = run(module.project, torch.cat([run(branch, sample) for branch in module.branches]))
        shortcut = sample if module.shortcut is None else run(module.shortcut, sample)
        results.append(run(module.act, shortcut + module.scale * found))
    return torch.stack(results)
