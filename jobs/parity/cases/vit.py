"""Tiny ViTs."""

from triune.exchange.proof import Case

SHAPE = {
    "hidden_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "intermediate_size": 44,
    "image_size": 12,
    "patch_size": 4,
    "num_channels": 2,
    "num_labels": 7,
}

CASES = [
    Case(name="5 heads of 6, 9 patches, 2 channels, 7 classes", model="ViTForImageClassification", settings=SHAPE),
    Case(
        name="no biases of queries, relu, epsilon 1e-5, 2 classes, 3 layers, patches of one pixel",
        model="ViTForImageClassification",
        settings=SHAPE
        | {
            "qkv_bias": False,
            "hidden_act": "relu",
            "layer_norm_eps": 1e-5,
            "num_labels": 2,
            "num_hidden_layers": 3,
            "image_size": [3, 3],
            "patch_size": [1, 1],
            "num_channels": 5,
        },
    ),
    Case(name="bare, with a pooler", model="ViTModel", settings=SHAPE | {"num_attention_heads": 1}),
    Case(
        name="bare, a pooler with relu",
        model="ViTModel",
        settings=SHAPE | {"pooler_act": "relu", "hidden_act": "gelu_new", "image_size": 8},
    ),
]
