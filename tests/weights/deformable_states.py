"""Deformable DETR under the names of every framework, from this package's params and without the rules that read them.

The names are those that the frameworks' own models have, with every name of a tensor that has several.
"""

import re

import numpy as np

from detr_jax.config import DeformableDETRConfig, ResNetConfig
from detr_jax.models.detector import abstract_model
from detr_jax.weights.trees import by_path
from tests.weights.framework_states import State, facebook_from_ours

KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
LEVELS = {"single": {"backbone_levels": 1, "extra_levels": 0}, "five": {"extra_levels": 2}}
STAGES = {"refined": {"refine_boxes": True}, "two-stage": {"refine_boxes": True, "two_stage": True}}
VARIANTS = {"single": LEVELS["single"], "multi": {}, "five": LEVELS["five"], **STAGES}
"""Fields of the configuration by the variant's name."""


def small_config(variant: str, **fields) -> DeformableDETRConfig:
    """A small model of a variant."""
    small = {
        "backbone": ResNetConfig(blocks=(1, 1, 1, 1), width=4),
        "num_classes": 6,
        "num_queries": 7,
        "hidden_dim": 32,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "feedforward_dim": 48,
        "num_points": 2,
    }
    return DeformableDETRConfig(**{**small, **VARIANTS[variant], **fields})


def random_params(config: DeformableDETRConfig, rng: np.random.Generator) -> State:
    """Random params by path."""
    _, abstract = abstract_model(config)
    return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in by_path(abstract).items()}


def original(params: State, config: DeformableDETRConfig) -> State:
    """The original's names."""
    state = facebook_from_ours({path: x for path, x in params.items() if path.startswith("backbone/")})
    packed: dict[str, dict[str, np.ndarray]] = {}
    for path, value in params.items():
        part, *modules, leaf = path.split("/")
        if leaf == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        kind = KINDS.get(leaf)
        if path == "pyramid/level_embedding":
            state["transformer.level_embed"] = value
        elif part == "pyramid":
            level = int(modules[1]) + (config.backbone_levels if modules[0] == "extra" else 0)
            state[f"input_proj.{level}.{modules.count('norm')}.{kind}"] = value
        elif path.startswith("queries/reference"):
            state[f"transformer.reference_points.{kind}"] = value
        elif part == "proposer":
            name = modules[0].replace("memory", "enc_output").replace("query", "pos_trans").replace("_projection", "")
            state[f"transformer.{name}.{kind}"] = value
        elif part in ("class_head", "box_head"):
            name, number = {"class_head": "class_embed", "box_head": "bbox_embed"}[part], modules[0]
            rest = ".".join([*modules[1:], kind])
            for i in [number] if config.refine_boxes else range(config.decoder_layers):
                state[f"{name}.{i}.{rest}"] = value
                if config.two_stage or (config.refine_boxes and part == "box_head"):
                    state[f"transformer.decoder.{name}.{i}.{rest}"] = value
        elif part in ("encoder", "decoder"):
            here = f"transformer.{part}.layers.{modules[1]}"
            sublayer, last = modules[2:]
            if sublayer.endswith("_residual"):
                order = {"encoder": ["self", "feed"], "decoder": ["cross", "self", "feed"]}[part]
                state[f"{here}.norm{order.index(sublayer.split('_')[0]) + 1}.{kind}"] = value
            elif sublayer == "feed_forward":
                state[f"{here}.linear{['expand', 'contract'].index(last) + 1}.{kind}"] = value
            elif part == "encoder" or sublayer == "cross_attention":
                name = f"{last}_proj" if last in ("value", "output") else last
                state[f"{here}.{sublayer.split('_')[0]}_attn.{name}.{kind}"] = value
            elif last == "output":
                state[f"{here}.self_attn.out_proj.{kind}"] = value
            else:
                packed.setdefault(f"{here}.self_attn.in_proj_{kind}", {})[last] = value
    if not config.two_stage:
        state["query_embed.weight"] = np.concatenate([params["queries/position"], params["queries/content"]], axis=1)
    for name, parts in packed.items():
        state[name] = np.concatenate([parts["query"], parts["key"], parts["value"]])
    return state


def huggingface(params: State, config: DeformableDETRConfig) -> State:
    """The names that transformers 4 writes, with a timm backbone."""
    norms = {"encoder": ["self_attn", "final"], "decoder": ["encoder_attn", "self_attn", "final"]}
    state = {}
    for name, value in original(params, config).items():
        if name.startswith(("class_embed", "bbox_embed")):
            state[name] = value
            continue
        name = name.replace("backbone.0.body.", "backbone.conv_encoder.model.").removeprefix("transformer.")
        name = name.replace("query_embed", "query_position_embeddings")
        if found := re.match(r"(encoder|decoder)\.layers\.\d+\.", name):
            name = re.sub(r"norm(\d)", lambda n: f"{norms[found[1]][int(n[1]) - 1]}_layer_norm", name)
            name = name.replace("linear", "fc").replace("cross_attn", "encoder_attn")
        if "in_proj_" in name:
            for part, third in zip("qkv", np.split(value, 3), strict=True):
                state["model." + name.replace("in_proj_", f"{part}_proj.")] = third
        else:
            state[f"model.{name}"] = value
    return state


def huggingface5(params: State, config: DeformableDETRConfig) -> State:
    """The names of transformers 5's ``state_dict()``."""
    state = {}
    for name, value in huggingface(params, config).items():
        name = name.replace("backbone.conv_encoder.model.", "backbone.model.")
        name = name.replace("self_attn.out_proj", "self_attn.o_proj")
        state[re.sub(r"layers\.(\d)\.fc", r"layers.\1.mlp.fc", name)] = value
    return state


def saved_by_transformers5(state: State, config: DeformableDETRConfig) -> State:
    """Only the names of heads that ``save_pretrained`` of transformers 5 writes for a model that it made itself."""

    def is_written(name: str) -> bool:
        if config.two_stage:
            return not name.startswith(("class_embed", "bbox_embed"))
        if config.refine_boxes:
            return not re.match(r"bbox_embed|class_embed\.[1-9]", name)
        return not re.match(r"(bbox|class)_embed\.[1-9]", name)

    return {name: value for name, value in state.items() if is_written(name)}


def mmdetection(params: State, config: DeformableDETRConfig) -> State:
    """mmdetection 3's names. Its pyramid's convolutions have no biases."""
    state = {}
    for name, value in original(params, config).items():
        if "transformer.decoder.class_embed" in name or "transformer.decoder.bbox_embed" in name:
            continue
        name = name.replace("backbone.0.body.", "backbone.").removeprefix("transformer.")
        if found := re.match(r"input_proj\.(\d)\.(\d)\.(\w+)", name):
            level, module = int(found[1]), ("conv", "gn")[int(found[2])]
            if module == "conv" and found[3] == "bias":
                continue
            extra = level - config.backbone_levels
            name = f"neck.{'convs' if extra < 0 else 'extra_convs'}.{level if extra < 0 else extra}.{module}.{found[3]}"
        if found := re.match(r"(encoder|decoder)\.layers\.\d+\.", name):
            for number, used in enumerate({"encoder": "01", "decoder": "102"}[found[1]], start=1):
                name = name.replace(f"norm{number}", f"norms.{used}")
            name = name.replace("linear1", "ffn.layers.0.0").replace("linear2", "ffn.layers.1")
            if found[1] == "decoder":
                name = name.replace("self_attn.", "self_attn.attn.")
        for there, here in (
            ("query_embed", "query_embedding"),
            ("reference_points", "reference_points_fc"),
            ("enc_output.", "memory_trans_fc."),
            ("enc_output_norm", "memory_trans_norm"),
            ("pos_trans.", "pos_trans_fc."),
            ("class_embed.", "bbox_head.cls_branches."),
        ):
            name = name.replace(there, here)
        name = re.sub(
            r"bbox_embed\.(\d)\.layers\.(\d)", lambda n: f"bbox_head.reg_branches.{n[1]}.{2 * int(n[2])}", name
        )
        state[name] = value
    return state
