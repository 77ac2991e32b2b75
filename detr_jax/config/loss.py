"""The configuration of the matching cost and the set loss, both sums of named parts that compute themselves."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from detr_jax.config.fields import Choice, ranged
from detr_jax.config.model import Classification
from detr_jax.log_names import TRAINING_NUMBERS, split_term

if TYPE_CHECKING:
    import jax

    from detr_jax.losses.masks import MatchedMasks
    from detr_jax.losses.matched import Matched
    from detr_jax.structures import Predictions, Targets


class Matcher(Choice):
    """Where the matching is solved."""

    SCIPY = "scipy"
    DEVICE = "device"


@dataclass(kw_only=True)
class LossTerm:
    """The base class of loss terms. A term of one's own is a subclass with `compute`, as an entry of ``loss.terms``."""

    diagnostic: ClassVar[bool] = False
    """Whether the term is for the log only. It is then computed for the last layer and has the weight 0."""
    classification: ClassVar[Classification | None] = None
    """What the term takes the outputs of the class head for. None: it works with any."""

    weight: float = 1.0
    """Factor of the term in the loss."""

    @abstractmethod
    def compute(self, matched: "Matched") -> "jax.Array":
        """Compute the term, without its weight.

        Args:
          matched: predictions, targets and the queries that found them, of ``L`` layers.

        Returns:
          [L] float32, divided so that the values of micro-batches add up to the value of the whole batch: by
          ``matched.num_boxes`` for a sum over boxes, for example.
        """
        raise NotImplementedError(f"{type(self).__name__} must define compute(self, matched).")

    def faults(self, path: str) -> Iterator[str]:
        """Fields that contradict one another."""
        if self.diagnostic and self.weight:
            yield f"{path}weight={self.weight} must be 0: the term is for the log only and has no gradient."


@dataclass(kw_only=True)
class CrossEntropy(LossTerm):
    """Cross-entropy of all queries over the classes and "no object" (DETR, equation 2)."""

    classification = Classification.SOFTMAX

    no_object: float = 0.1
    """Weight of "no object": a tenth, because most queries find none (the paper's)."""

    def compute(self, matched: "Matched") -> "jax.Array":
        """`detr_jax.losses.terms.cross_entropy`."""
        from detr_jax.losses.terms import cross_entropy

        return cross_entropy(matched, self.no_object)


@dataclass(kw_only=True)
class SigmoidFocal(LossTerm):
    """Focal loss of an own probability for each class (Lin et al., 2017; Deformable DETR)."""

    classification = Classification.SIGMOID

    weight: float = 2.0
    """Factor of the term in the loss (Deformable DETR's)."""
    alpha: float = ranged(0.25, most=1)
    """Weight of the target's class; other classes weigh ``1 - alpha`` (the paper's)."""
    gamma: float = 2.0
    """Exponent that takes weight from outputs that are right already (the paper's)."""

    def compute(self, matched: "Matched") -> "jax.Array":
        """`detr_jax.losses.focal.focal_loss`."""
        from detr_jax.losses.focal import focal_loss

        return focal_loss(matched, self.alpha, self.gamma)


@dataclass(kw_only=True)
class L1(LossTerm):
    """L1 distance of matched boxes (DETR, section 3.1)."""

    weight: float = 5.0
    """Factor of the term in the loss (the paper's)."""

    def compute(self, matched: "Matched") -> "jax.Array":
        """`detr_jax.losses.terms.l1`."""
        from detr_jax.losses.terms import l1

        return l1(matched)


@dataclass(kw_only=True)
class GIoU(LossTerm):
    """1 - generalised IoU of matched boxes (DETR, section 3.1)."""

    weight: float = 2.0
    """Factor of the term in the loss (the paper's)."""

    def compute(self, matched: "Matched") -> "jax.Array":
        """`detr_jax.losses.terms.giou`."""
        from detr_jax.losses.terms import giou

        return giou(matched)


@dataclass(kw_only=True)
class Diagnostic(LossTerm):
    """The base class of terms that are only for the log. They are logged under their own name."""

    diagnostic = True

    weight: float = 0.0
    """Must be 0, because the term is only logged."""


@dataclass(kw_only=True)
class CardinalityError(Diagnostic):
    """The mean difference between the number of queries that predict an object and the number of boxes."""

    def compute(self, matched: "Matched") -> "jax.Array":
        """`detr_jax.losses.diagnostics.cardinality_error`."""
        from detr_jax.losses.diagnostics import cardinality_error

        return cardinality_error(matched)


@dataclass(kw_only=True)
class ClassError(Diagnostic):
    """The percentage of matched queries whose highest output, "no object" included, is not their target's class."""

    def compute(self, matched: "Matched") -> "jax.Array":
        """`detr_jax.losses.diagnostics.class_error`."""
        from detr_jax.losses.diagnostics import class_error

        return class_error(matched)


@dataclass(kw_only=True)
class ClassAccuracy(Diagnostic):
    """The percentage of matched queries whose highest output, "no object" excluded, is their target's class."""

    def compute(self, matched: "Matched") -> "jax.Array":
        """`detr_jax.losses.diagnostics.class_accuracy`."""
        from detr_jax.losses.diagnostics import class_accuracy

        return class_accuracy(matched)


@dataclass(kw_only=True)
class MaskTerm(LossTerm):
    """The base class of loss terms of masks. A term of one's own is a subclass with `compute_masks`.

    It is computed for the matched queries of the last decoder layer, summed, and divided by the number of boxes.
    """

    def compute(self, matched: "Matched") -> "jax.Array":
        """Not used: `detr_jax.losses.set_loss` calls `compute_masks`."""
        raise NotImplementedError(f"A {type(self).__name__} is computed from masks, by compute_masks(masks).")

    @abstractmethod
    def compute_masks(self, masks: "MatchedMasks") -> "jax.Array":
        """Compute the term for each mask, without its weight.

        Args:
          masks: logits and targets of ``k`` masks of each of ``B`` images.

        Returns:
          [B, k] float32.
        """
        raise NotImplementedError(f"{type(self).__name__} must define compute_masks(self, masks).")


@dataclass(kw_only=True)
class MaskFocal(MaskTerm):
    """Focal loss of the pixels of matched masks (DETR, section 3.4; Lin et al., 2017)."""

    alpha: float = ranged(0.25, most=1)
    """Weight of the object's pixels; others weigh ``1 - alpha`` (the original's)."""
    gamma: float = 2.0
    """Exponent that takes weight from pixels that are right already (the original's)."""

    def compute_masks(self, masks: "MatchedMasks") -> "jax.Array":
        """`detr_jax.losses.masks.mask_focal`."""
        from detr_jax.losses.masks import mask_focal

        return mask_focal(masks, self.alpha, self.gamma)


@dataclass(kw_only=True)
class MaskDice(MaskTerm):
    """Dice loss of matched masks, 1 minus their overlap with their targets (DETR, section 3.4)."""

    def compute_masks(self, masks: "MatchedMasks") -> "jax.Array":
        """`detr_jax.losses.masks.mask_dice`."""
        from detr_jax.losses.masks import mask_dice

        return mask_dice(masks)


@dataclass(kw_only=True)
class MatchingCost:
    """The base class of matching costs. A cost of one's own is a subclass with `compute`, as an entry of
    ``loss.costs``."""

    classification: ClassVar[Classification | None] = None
    """What the cost takes the outputs of the class head for. None: it works with any."""

    weight: float = 1.0
    """Factor of the cost in the sum."""

    @abstractmethod
    def compute(self, predictions: "Predictions", targets: "Targets") -> "jax.Array":
        """Compute the cost of each pair of a query and a target, without its weight.

        Returns:
          [L, B, Q, T] float32; no gradient flows through it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define compute(self, predictions, targets).")


@dataclass(kw_only=True)
class SoftmaxCost(MatchingCost):
    """Minus the probability of the target's class (DETR, equation 1)."""

    classification = Classification.SOFTMAX

    def compute(self, predictions: "Predictions", targets: "Targets") -> "jax.Array":
        """`detr_jax.matching.costs.softmax_cost`."""
        from detr_jax.matching.costs import softmax_cost

        return softmax_cost(predictions, targets)


@dataclass(kw_only=True)
class FocalCost(MatchingCost):
    """The focal loss of the target's class minus its focal loss as another class (Deformable DETR)."""

    classification = Classification.SIGMOID

    weight: float = 2.0
    """Factor of the cost in the sum (Deformable DETR's)."""
    alpha: float = ranged(0.25, most=1)
    """Weight of the target's class (the paper's)."""
    gamma: float = 2.0
    """Exponent that takes weight from outputs that are right already (the paper's)."""

    def compute(self, predictions: "Predictions", targets: "Targets") -> "jax.Array":
        """`detr_jax.matching.costs.focal_cost`."""
        from detr_jax.matching.costs import focal_cost

        return focal_cost(predictions, targets, self.alpha, self.gamma)


@dataclass(kw_only=True)
class L1Cost(MatchingCost):
    """L1 distance of the boxes (DETR, section 3.1)."""

    weight: float = 5.0
    """Factor of the cost in the sum (the paper's)."""

    def compute(self, predictions: "Predictions", targets: "Targets") -> "jax.Array":
        """`detr_jax.matching.costs.l1_cost`."""
        from detr_jax.matching.costs import l1_cost

        return l1_cost(predictions, targets)


@dataclass(kw_only=True)
class GIoUCost(MatchingCost):
    """Minus the generalised IoU of the boxes (DETR, section 3.1)."""

    weight: float = 2.0
    """Factor of the cost in the sum (the paper's)."""

    def compute(self, predictions: "Predictions", targets: "Targets") -> "jax.Array":
        """`detr_jax.matching.costs.giou_cost`."""
        from detr_jax.matching.costs import giou_cost

        return giou_cost(predictions, targets)


def default_terms() -> dict[str, LossTerm]:
    """DETR's loss, and its diagnostics for the log."""
    return {
        "ce": CrossEntropy(),
        "bbox": L1(),
        "giou": GIoU(),
        "cardinality_error": CardinalityError(),
        "class_error": ClassError(),
        "class_accuracy": ClassAccuracy(),
    }


def mask_terms() -> dict[str, LossTerm]:
    """DETR's loss with masks, and its diagnostics for the log."""
    return {**default_terms(), "mask": MaskFocal(), "dice": MaskDice()}


def default_costs() -> dict[str, MatchingCost]:
    """DETR's matching cost."""
    return {"class": SoftmaxCost(), "bbox": L1Cost(), "giou": GIoUCost()}


def focal_terms() -> dict[str, LossTerm]:
    """Deformable DETR's loss for sigmoid classification, and its diagnostics for the log."""
    return {
        "ce": SigmoidFocal(),
        "bbox": L1(),
        "giou": GIoU(),
        "class_accuracy": ClassAccuracy(),
    }


def dino_terms() -> dict[str, LossTerm]:
    """DINO's loss: `focal_terms` with a weight of 1 for the class."""
    return {**focal_terms(), "ce": SigmoidFocal(weight=1.0)}


def focal_costs() -> dict[str, MatchingCost]:
    """Deformable DETR's matching cost for sigmoid classification."""
    return {"class": FocalCost(), "bbox": L1Cost(), "giou": GIoUCost()}


@dataclass(kw_only=True)
class LossConfig:
    """Matching cost and set loss (DETR, section 3.1 and appendix A.2)."""

    matcher: Matcher = Matcher.SCIPY
    """Where the matching is solved: "scipy" (linear_sum_assignment on the host) or "device" (the same optimum on the
    accelerator)."""
    auxiliary: bool = True
    """Train every decoder layer's predictions, not only the last's."""
    terms: dict[str, LossTerm] = field(default_factory=default_terms)
    """The loss is the weighted sum of these terms. ``giou`` is logged as ``loss_giou``, a diagnostic under its name."""
    costs: dict[str, MatchingCost] = field(default_factory=default_costs)
    """The matching cost is the weighted sum of these costs."""

    @property
    def classification(self) -> Classification:
        """What the terms and costs take the outputs of the class head for; softmax if none of them says."""
        parts: list[LossTerm | MatchingCost] = [*self.terms.values(), *self.costs.values()]
        return next((part.classification for part in parts if part.classification), Classification.SOFTMAX)

    @property
    def mask_terms(self) -> dict[str, MaskTerm]:
        """The terms that are computed from masks."""
        return {name: term for name, term in self.terms.items() if isinstance(term, MaskTerm)}

    def faults(self, path: str) -> Iterator[str]:
        """Fields that contradict one another."""
        sections: dict[str, Mapping[str, LossTerm | MatchingCost]] = {"terms": self.terms, "costs": self.costs}
        for section, parts in sections.items():
            if all(not part.weight for part in parts.values()):
                yield f"{path}{section} holds nothing with a weight above 0: give at least one."
            for name, part in parts.items():
                if part.classification not in (None, self.classification):
                    yield (
                        f"{path}{section}.{name} ({type(part).__name__}) reads the outputs of the class head as "
                        f"{part.classification!r}, but other terms or costs read them as {self.classification!r}: "
                        "use the same for all."
                    )
        yield from self._name_faults(f"{path}terms.")

    def _name_faults(self, path: str) -> Iterator[str]:
        """Terms that the log would confuse with each other, or with the other numbers of a training."""
        losses = ["loss", *(f"loss_{name}" for name, term in self.terms.items() if not term.diagnostic)]
        for name, term in self.terms.items():
            logged = name if term.diagnostic else f"loss_{name}"
            owner, other = split_term(logged, losses)
            if term.diagnostic and (name in TRAINING_NUMBERS or name.startswith("loss_")):
                yield f"{path}{name} is logged as {logged}, as another number of the training is: choose another name."
            elif not term.diagnostic and other:
                yield f"{path}{name} is logged as {logged}, as {owner} of other predictions is: choose another name."
