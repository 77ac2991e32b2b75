"""Pictures of boxes and attention, animations of a training, and the charts of a report."""

from detr_jax.visualization.boxes import LabelledBoxes as LabelledBoxes
from detr_jax.visualization.boxes import comparison_sheet as comparison_sheet
from detr_jax.visualization.boxes import draw_boxes as draw_boxes
from detr_jax.visualization.boxes import sample_sheet as sample_sheet
