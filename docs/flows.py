"""The data flow of every module with its default options, as we draw it."""

from docs.drawing import Flow, Fork


def fork(join: str, *branches: Flow) -> Fork:
    """Write a fork in one line."""
    return Fork(join, branches)


FLOWS: dict[str, Flow] = {
    "se": [
        fork("×", ["mean over positions", "1×1, C → C/16, ReLU", "1×1, C/16 → C, sigmoid"], []),
    ],
    "scse": [
        fork(
            "max",
            [fork("×", ["mean over positions", "1×1, C → C/2, ReLU", "1×1, C/2 → C, sigmoid"], [])],
            [fork("×", ["1×1, C → 1, sigmoid"], [])],
        ),
    ],
    "cbam": [
        fork(
            "×",
            [
                fork(
                    "+", ["mean over positions", "shared MLP"], ["max over positions", "shared MLP"]
                ),
                "sigmoid",
            ],
            [],
        ),
        fork(
            "×",
            [
                fork("concat", ["max over channels"], ["mean over channels"]),
                "7×7 conv, 2 → 1, BN, sigmoid",
            ],
            [],
        ),
    ],
    "bam": [
        fork(
            "+",
            [
                fork(
                    "×",
                    [
                        fork(
                            "×",
                            ["mean over positions", "1×1, C → C/16, BN, ReLU", "1×1, C/16 → C"],
                            [
                                "1×1, C → C/16, BN, ReLU",
                                "2 conv 3×3, dilation 4, BN, ReLU",
                                "1×1, C/16 → 1",
                            ],
                        ),
                        "sigmoid",
                    ],
                    [],
                ),
            ],
            [],
        ),
    ],
    "gc": [
        fork(
            "+",
            [
                fork("sum of products", ["1×1, C → 1", "softmax over positions"], []),
                "1×1, C → C/16",
                "layer norm, ReLU",
                "1×1, C/16 → C",
            ],
            [],
        ),
    ],
    "nl": [
        fork(
            "+",
            [
                fork(
                    "attend",
                    ["query: 1×1 conv, C → C/2"],
                    ["max pool 2×2", "key: 1×1 conv, C → C/2"],
                    ["max pool 2×2", "value: 1×1 conv, C → C/2"],
                ),
                "1×1, C/2 → C, BN (weight 0)",
            ],
            [],
        ),
    ],
    "cc": [
        fork(
            "+",
            [
                fork(
                    "attend",
                    ["query: 1×1 conv, C → C/8"],
                    ["key: 1×1 conv, C → C/8; own row and column"],
                    ["value: 1×1 conv, C → C; own row and column"],
                ),
                "times γ (0 at the start)",
            ],
            [],
        ),
        "the same again with the same weights",
    ],
    "sk": [
        fork("both", ["3×3 conv, BN, ReLU"], ["3×3 conv, dilation 2, BN, ReLU"]),
        fork(
            "weighted sum",
            [],
            [
                "sum of both, mean over positions",
                "1×1, C → d, BN, ReLU",
                "1×1, d → 2C, softmax over the two",
            ],
        ),
    ],
    "splat": [
        "3×3 conv, C → 2C' in groups, BN, ReLU",
        "two splits of C' channels",
        fork(
            "weighted sum",
            [],
            [
                "sum of both, mean over positions",
                "1×1, C' → d, BN, ReLU",
                "1×1, d → 2C', softmax over the two",
            ],
        ),
    ],
    "acnet": [
        fork("+", ["K×K conv, BN"], ["1×K conv, BN"], ["K×1 conv, BN"]),
    ],
    "mixconv": [
        "cut the channels in shares",
        fork("concat", ["depthwise 3×3"], ["depthwise 5×5"], ["depthwise 7×7"]),
    ],
    "dwconv": ["depthwise K×K, BN, ReLU", "1×1, C → C', BN, ReLU"],
    "blazeblock": [
        fork(
            "+",
            ["depthwise 5×5, BN", "1×1, C → C', BN"],
            ["max pool 2×2 at stride 2", "zeros for new channels"],
        ),
        "ReLU",
    ],
    "aspp": [
        fork(
            "concat",
            ["mean over positions", "1×1 conv, BN, ReLU", "spread to all positions"],
            ["1×1 conv, BN, ReLU"],
            ["3×3 conv, rate 6, BN, ReLU"],
            ["3×3 conv, rate 12, BN, ReLU"],
            ["3×3 conv, rate 18, BN, ReLU"],
        ),
        "1×1 conv, BN, ReLU, dropout",
    ],
    "spp": [
        "1×1, C → C/2, BN, SiLU",
        fork(
            "concat",
            [],
            ["max pool 5×5"],
            ["max pool 5×5", "max pool 5×5, sees 9×9"],
            ["max pool 5×5", "max pool 5×5", "max pool 5×5, sees 13×13"],
        ),
        "1×1 conv, BN, SiLU",
    ],
    "ppm": [
        fork(
            "concat",
            [],
            *(
                [f"average pool to {b}×{b}", "1×1, C → C/4, BN, ReLU", "bilinear to H×W"]
                for b in (1, 2, 3, 6)
            ),
        ),
        "3×3 conv, BN, ReLU, dropout",
    ],
    "rfb": [
        fork(
            "+",
            [
                fork(
                    "concat",
                    ["1×1, C → 2i\n(i = C/8)", "3×3 conv, rate 2"],
                    ["1×1, C → i", "3×3 conv, i → 2i", "3×3 conv, rate 3"],
                    ["1×1, C → i", "3×3 conv", "3×3 conv, → 2i", "3×3 conv, rate 5"],
                ),
                "1×1, 6i → C'",
                "times scale (1)",
            ],
            ["1×1, C → C'"],
        ),
        "ReLU",
    ],
    "ssh": [
        fork(
            "concat",
            ["3×3 conv, C → C'/2"],
            [
                "3×3 conv, C → C'/4, ReLU",
                fork("concat", ["3×3 conv"], ["3×3 conv, ReLU", "3×3 conv"]),
            ],
        ),
        "ReLU",
    ],
    "seb": [
        Fork(
            "×",
            ([], ["3×3 conv", "bilinear to the size of low"]),
            inputs=("low", "high"),
        ),
    ],
    "strippool": [
        fork(
            "×",
            [
                fork(
                    "+",
                    ["mean of every row", "3×1 conv, BN"],
                    ["mean of every column", "1×3 conv, BN"],
                ),
                "ReLU",
                "1×1 conv, sigmoid",
            ],
            [],
        ),
    ],
}

REWRITE: Flow = ["conv: W, b", "batch norm: γ, β, running mean and variance"]
FOLDED: Flow = ["conv: γ W / σ, β + γ (b - m) / σ"]
