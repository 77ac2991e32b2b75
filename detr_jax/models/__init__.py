"""The network: backbone, position embeddings, attention, transformer, heads."""

from detr_jax.models.attention import MultiHeadAttention as MultiHeadAttention
from detr_jax.models.attention_maps import AttentionMaps as AttentionMaps
from detr_jax.models.attention_maps import attention_maps as attention_maps
from detr_jax.models.deformable_attention import DeformableAttention as DeformableAttention
from detr_jax.models.deformable_detr import DeformableDETR as DeformableDETR
from detr_jax.models.detector import DetectorModule as DetectorModule
from detr_jax.models.detector import abstract_model as abstract_model
from detr_jax.models.detr import DETR as DETR
from detr_jax.models.dino import DINO as DINO
from detr_jax.models.feature_map import FeatureMap as FeatureMap
from detr_jax.models.images import normalize_images as normalize_images
from detr_jax.models.mask_head import MaskFeatures as MaskFeatures
from detr_jax.models.mask_head import MaskHead as MaskHead
from detr_jax.models.positions import LearnedPositionEmbedding as LearnedPositionEmbedding
from detr_jax.models.positions import sine_position_embedding as sine_position_embedding
from detr_jax.models.presets import deformable_detr_resnet50 as deformable_detr_resnet50
from detr_jax.models.presets import deformable_detr_resnet50_refine as deformable_detr_resnet50_refine
from detr_jax.models.presets import deformable_detr_resnet50_single_scale as deformable_detr_resnet50_single_scale
from detr_jax.models.presets import (
    deformable_detr_resnet50_single_scale_dc5 as deformable_detr_resnet50_single_scale_dc5,
)
from detr_jax.models.presets import deformable_detr_resnet50_two_stage as deformable_detr_resnet50_two_stage
from detr_jax.models.presets import detr_resnet50 as detr_resnet50
from detr_jax.models.presets import detr_resnet50_dc5 as detr_resnet50_dc5
from detr_jax.models.presets import detr_resnet50_dc5_panoptic as detr_resnet50_dc5_panoptic
from detr_jax.models.presets import detr_resnet50_panoptic as detr_resnet50_panoptic
from detr_jax.models.presets import detr_resnet101 as detr_resnet101
from detr_jax.models.presets import detr_resnet101_dc5 as detr_resnet101_dc5
from detr_jax.models.presets import detr_resnet101_panoptic as detr_resnet101_panoptic
from detr_jax.models.presets import dino_4scale_resnet50 as dino_4scale_resnet50
from detr_jax.models.presets import dino_5scale_resnet50 as dino_5scale_resnet50
from detr_jax.models.presets import resnet_config as resnet_config
from detr_jax.models.resnet import ResNet as ResNet
from detr_jax.models.sampling_points import SamplingPoints as SamplingPoints
from detr_jax.models.sampling_points import sampling_points as sampling_points
from detr_jax.structures import Outputs as Outputs
from detr_jax.structures import Predictions as Predictions
