"""All attacks by the names that cells and results use."""

from __future__ import annotations

from attacks.alie import ALittleIsEnough
from attacks.base import Attack
from attacks.gaussian import Gaussian
from attacks.inner_product import LargeInnerProduct, SmallInnerProduct
from attacks.label_flip import LabelFlip
from attacks.lies import LossAfter, LossBefore, LyingWeight, LyingWeightAndMinus10, LyingWeightAndSign, NotUsable
from attacks.scaling import SignFlip, Times10, TimesMillion, TimesMinus10
from attacks.sleeper import Sleeper

NONE = "none"
ABSENT = "absent"
"""The attack that is refused by every rule: what is left is a federation without these clients."""

ATTACKS: dict[str, Attack] = {
    NONE: Attack(),
    ABSENT: NotUsable(),
    "sign_flip": SignFlip(),
    "times_10": Times10(),
    "times_-10": TimesMinus10(),
    "times_1e6": TimesMillion(),
    "label_flip": LabelFlip(),
    "gaussian": Gaussian(),
    "alie": ALittleIsEnough(),
    "ipm_0.5": SmallInnerProduct(),
    "ipm_5": LargeInnerProduct(),
    "weight": LyingWeight(),
    "weight_sign": LyingWeightAndSign(),
    "weight_-10": LyingWeightAndMinus10(),
    "sleeper": Sleeper(),
    "loss_before": LossBefore(),
    "loss_after": LossAfter(),
}
