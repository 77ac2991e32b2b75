"""The same weights under the names of every framework, written without the rules that read them.

Every function takes the ``state_dict()`` of transformers 5.x, which the fixtures hold.
"""

import re

import numpy as np

from detr_jax.data.coco_classes import COCO_CLASSES

State = dict[str, np.ndarray]


def transformers4(state: State) -> State:
    """As every version of transformers writes it to disk."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("model.backbone.model.", "model.backbone.conv_encoder.model.")
        name = name.replace("model.position_embedding.", "model.backbone.position_embedding.")
        name = name.replace("o_proj", "out_proj").replace(".mlp.fc", ".fc")
        renamed[name] = value
    return renamed


def _torchvision_name(name: str) -> str | None:
    """The name in a ResNet of a tensor of transformers' backbone, None for other tensors."""
    if not name.startswith("model.backbone.model."):
        return None
    *_, module, kind = name.split(".")
    if "embedder" in name:
        return f"{'conv1' if module == 'convolution' else 'bn1'}.{kind}"
    stage, block = re.search(r"stages\.(\d)\.layers\.(\d+)", name).groups()
    here = f"layer{int(stage) + 1}.{block}"
    if "shortcut" in name:
        return f"{here}.downsample.{0 if module == 'convolution' else 1}.{kind}"
    number = int(re.search(r"layer\.(\d)\.", name)[1]) + 1
    return f"{here}.{'conv' if module == 'convolution' else 'bn'}{number}.{kind}"


def torchvision(state: State) -> State:
    """Only the backbone, with a classifier and the counters of PyTorch's batch norms."""
    found = {_torchvision_name(name): value for name, value in state.items() if _torchvision_name(name)}
    counters = [name.replace("running_mean", "num_batches_tracked") for name in found if "running_mean" in name]
    width = next(reversed(found.values())).shape[0]
    return {
        **found,
        **{name: np.array(7) for name in counters},
        "fc.weight": np.zeros((10, width), np.float32),
        "fc.bias": np.zeros(10, np.float32),
    }


def transformers_with_timm(state: State) -> State:
    """transformers 4.x with a timm backbone."""
    renamed = {name: value for name, value in transformers4(state).items() if ".conv_encoder." not in name}
    for name, value in torchvision(state).items():
        if not name.startswith("fc."):
            renamed[f"model.backbone.conv_encoder.model.{name}"] = value
    return renamed


def facebook(state: State) -> State:
    """The original's names. Query, key and value are packed into one tensor."""
    renamed, packed = {}, {}
    simple = {
        "model.input_projection": "input_proj",
        "model.query_position_embeddings": "query_embed",
        "model.position_embedding.row_embeddings": "backbone.1.row_embed",
        "model.position_embedding.column_embeddings": "backbone.1.col_embed",
        "model.decoder.layernorm": "transformer.decoder.norm",
        "class_labels_classifier": "class_embed",
        "bbox_predictor": "bbox_embed",
    }
    norms = {
        "encoder": {"self_attn_layer_norm": "norm1", "final_layer_norm": "norm2"},
        "decoder": {"self_attn_layer_norm": "norm1", "encoder_attn_layer_norm": "norm2", "final_layer_norm": "norm3"},
    }
    for name, value in state.items():
        if resnet := _torchvision_name(name):
            renamed[f"backbone.0.body.{resnet}"] = value
            continue
        start = next((start for start in simple if name.startswith(start)), None)
        if start:
            renamed[name.replace(start, simple[start])] = value
            continue
        coder, _, index, *rest = name.removeprefix("model.").split(".")
        here, kind = f"transformer.{coder}.layers.{index}", rest[-1]
        if rest[0] in norms[coder]:
            renamed[f"{here}.{norms[coder][rest[0]]}.{kind}"] = value
        elif rest[0] == "mlp":
            renamed[f"{here}.{rest[1].replace('fc', 'linear')}.{kind}"] = value
        else:
            attention = f"{here}.{rest[0].replace('encoder_attn', 'multihead_attn')}"
            if rest[1] == "o_proj":
                renamed[f"{attention}.out_proj.{kind}"] = value
            else:
                packed.setdefault(f"{attention}.in_proj_{kind}", {})[rest[1]] = value
    for name, parts in packed.items():
        renamed[name] = np.concatenate([parts["q_proj"], parts["k_proj"], parts["v_proj"]])
    return renamed


def detectron2(state: State) -> State:
    """The names of the original's detectron2 wrapper, with its buffers."""
    renamed = {}
    for name, value in facebook(state).items():
        if name.startswith("backbone.0.body."):
            name = name.removeprefix("backbone.0.body.")
            name = name if name.startswith("layer") else f"stem.{name}"
            name = re.sub(r"layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
            name = re.sub(r"bn(\d)", r"conv\1.norm", name)
            name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
            name = f"backbone.0.backbone.{name}"
        renamed[f"detr.{name}"] = value
    return {
        **renamed,
        "pixel_mean": np.float32([123.675, 116.28, 103.53]).reshape(3, 1, 1),
        "pixel_std": np.float32([58.395, 57.12, 57.375]).reshape(3, 1, 1),
        "criterion.empty_weight": np.ones(81, np.float32),
    }


def mmdetection(state: State) -> State:
    """mmdetection 3.x's names, with the counters of its batch norms."""
    renamed = {f"backbone.{name}": value for name, value in torchvision(state).items() if not name.startswith("fc.")}
    parts = {
        "input_proj.": "neck.convs.0.conv.",
        "query_embed.": "query_embedding.",
        "backbone.1.row_embed.": "positional_encoding.row_embed.",
        "backbone.1.col_embed.": "positional_encoding.col_embed.",
        "transformer.decoder.norm.": "decoder.post_norm.",
        "class_embed.": "bbox_head.fc_cls.",
        "bbox_embed.layers.0.": "bbox_head.reg_ffn.layers.0.0.",
        "bbox_embed.layers.1.": "bbox_head.reg_ffn.layers.1.",
        "bbox_embed.layers.2.": "bbox_head.fc_reg.",
        "self_attn.": "self_attn.attn.",
        "multihead_attn.": "cross_attn.attn.",
        "linear1.": "ffn.layers.0.0.",
        "linear2.": "ffn.layers.1.",
        "norm1.": "norms.0.",
        "norm2.": "norms.1.",
        "norm3.": "norms.2.",
    }
    for name, value in facebook(state).items():
        if name.startswith("backbone.0.body."):
            continue
        for there, here in parts.items():
            name = name.replace(there, here)
        renamed[name.removeprefix("transformer.")] = value
    return renamed


def facebook_from_ours(params: State) -> State:
    """The original's names and shapes for this package's own parameters by path."""
    state, packed = {}, {}
    kinds = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
    for path, value in params.items():
        *modules, leaf = path.split("/")
        kind = kinds.get(leaf)
        if leaf == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        if modules[:1] == ["backbone"]:
            is_norm = modules[-1] == "norm"
            if modules[1] == "stem":
                name = "bn1" if is_norm else "conv1"
            else:
                _, _, stage, block, *rest = modules
                last = f"downsample.{int(is_norm)}"
                if rest[0] == "convs":
                    last = f"{'bn' if is_norm else 'conv'}{int(rest[1]) + 1}"
                name = f"layer{int(stage) + 1}.{block}.{last}"
            state[f"backbone.0.body.{name}.{kind}"] = value
        elif modules == ["input_projection"]:
            state[f"input_proj.{kind}"] = value[..., None, None] if kind == "weight" else value
        elif path == "object_queries":
            state["query_embed.weight"] = value
        elif modules == ["position_embedding"]:
            state[f"backbone.1.{ {'rows': 'row', 'columns': 'col'}[leaf] }_embed.weight"] = value
        elif modules[0] == "class_head":
            state[f"class_embed.{kind}"] = value
        elif modules[0] == "box_head":
            state[f"bbox_embed.layers.{modules[2]}.{kind}"] = value
        elif modules[0] == "mask_head":
            state[f"{_of_mask_head(modules[1:])}.{kind}"] = value
        elif modules[1] == "norm":
            state[f"transformer.{modules[0]}.norm.{kind}"] = value
        else:
            coder, _, index, part, last = modules
            here = f"transformer.{coder}.layers.{index}"
            attention = "multihead_attn" if part == "cross_attention" else "self_attn"
            if part.endswith("_residual"):
                order = ["self_attention", "cross_attention", "feed_forward"]
                order = order if coder == "decoder" else [order[0], order[2]]
                state[f"{here}.norm{order.index(part.removesuffix('_residual')) + 1}.{kind}"] = value
            elif part == "feed_forward":
                state[f"{here}.linear{1 if last == 'expand' else 2}.{kind}"] = value
            elif last == "output":
                state[f"{here}.{attention}.out_proj.{kind}"] = value
            else:
                packed.setdefault(f"{here}.{attention}.in_proj_{kind}", {})[last] = value
    for name, parts in packed.items():
        state[name] = np.concatenate([parts["query"], parts["key"], parts["value"]])
    return state


def coco_outputs() -> np.ndarray:
    """Indices of the 81 contiguous class outputs among the 92 outputs by raw id."""
    return np.array([*COCO_CLASSES, 91])


def _of_mask_head(modules: list[str]) -> str:
    """The original's name of a module of the mask head."""
    if modules[0] == "attention":
        return f"bbox_attention.{modules[1][0]}_linear"
    if modules == ["output"]:
        return "mask_head.out_lay"
    part = {"layers": "lay", "adapters": "adapter"}[modules[0]] if modules[-1] != "norm" else "gn"
    return f"mask_head.{part}{int(modules[1]) + 1}"
