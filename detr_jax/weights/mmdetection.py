"""mmdetection 3.x's DETR: 80 contiguous classes in the order of COCO's ids, background last."""

from detr_jax.weights.layout import POINTWISE, TABLE, Layout, Rule, layer_norm, linear, packed_attention
from detr_jax.weights.torchvision import resnet_rules


def _layer_rules(there: str, here: str, attentions: dict[str, str]) -> list[Rule]:
    """A transformer layer: attentions (name there: name here), then the feed-forward network; norms are numbered."""
    rules: list[Rule] = []
    for number, (name, ours) in enumerate(attentions.items()):
        rules += packed_attention(f"{there}.{name}.attn", f"{here}/{ours}")
        rules += layer_norm(f"{there}.norms.{number}", f"{here}/{ours}_residual/norm")
    return [
        *rules,
        *linear(f"{there}.ffn.layers.0.0", f"{here}/feed_forward/expand"),
        *linear(f"{there}.ffn.layers.1", f"{here}/feed_forward/contract"),
        *layer_norm(f"{there}.norms.{len(attentions)}", f"{here}/feed_forward_residual/norm"),
    ]


MMDETECTION = Layout(
    kind="mmdetection",
    rules=(
        *resnet_rules("backbone."),
        *linear("neck.convs.0.conv", "input_projection", POINTWISE),
        Rule("query_embedding.weight", ("object_queries",), TABLE),
        Rule("positional_encoding.row_embed.weight", ("position_embedding/rows",), TABLE),
        Rule("positional_encoding.col_embed.weight", ("position_embedding/columns",), TABLE),
        *_layer_rules("encoder.layers.*", "encoder/layers/*", {"self_attn": "self_attention"}),
        *_layer_rules(
            "decoder.layers.*", "decoder/layers/*", {"self_attn": "self_attention", "cross_attn": "cross_attention"}
        ),
        *layer_norm("decoder.post_norm", "decoder/norm"),
        *linear("bbox_head.fc_cls", "class_head"),
        *linear("bbox_head.reg_ffn.layers.0.0", "box_head/layers/0"),
        *linear("bbox_head.reg_ffn.layers.1", "box_head/layers/1"),
        *linear("bbox_head.fc_reg", "box_head/layers/2"),
    ),
    ignored=r".*\.num_batches_tracked|data_preprocessor\.(mean|std)",
    contiguous_coco=True,
)
