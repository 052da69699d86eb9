"""Keys of the forecasts made from a trained model: `[calibration]` and `[decision]`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from llueve.config.section import Section

CalibrationMethod = Literal["none", "temperature", "platt", "isotonic"]
DecisionRule = Literal["half", "f1", "csi", "cost_loss", "recall"]


class CalibrationConfig(Section):
    """Correction of the probabilities, fitted on the validation period (`[calibration]`)."""

    method: Literal["auto", CalibrationMethod] = "auto"
    """`none` leaves the probabilities as they are, `temperature` divides the logits by one number, `platt` also shifts them,
    and `isotonic` fits a rising curve. `auto` chooses by cross-validation; a validation period of less than a year, or more than
    two classes, allow it `temperature` and `none` alone."""


class DecisionConfig(Section):
    """Probability from which the forecast says yes, chosen on the validation period (`[decision]`)."""

    rule: DecisionRule = "half"
    """`half` says yes from 0.5. The others take the threshold with the highest F1 or CSI, with the least expense
    (`cost_loss`), or the highest one that finds the required share of the events (`recall`)."""
    cost_loss_ratio: float | None = Field(None, gt=0, lt=1)
    """Cost of protection divided by the loss that it prevents, for `cost_loss`. Not set: the rule does not need it."""
    required_recall: float | None = Field(None, gt=0, le=1)
    """Least share of the events that must be forecast, for `recall`. Not set: the rule does not need it."""

    @model_validator(mode="after")
    def _rule_has_its_number(self) -> Self:
        for key, rule in (("cost_loss_ratio", "cost_loss"), ("required_recall", "recall")):
            value = getattr(self, key)
            if self.rule == rule and value is None:
                raise ValueError(f'rule = "{rule}" needs {key}, such as {key} = 0.2')
            if self.rule != rule and value is not None:
                raise ValueError(f'{key} = {value:g} has no effect with rule = "{self.rule}"; set rule = "{rule}"')
        return self
