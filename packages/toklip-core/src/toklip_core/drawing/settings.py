"""Settings of drawing, as one value from the command line to the logits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from toklip_core.config import refuse_drawing, refuse_outside
from toklip_core.drawing.guidance import Guidance

NoiseKind = Literal["uniform", "gumbel"]


@dataclass(frozen=True)
class Drawing:
    """Settings of drawing; None stands for the model's own value.

    Raises:
        ValueError: a value is out of its range.

    >>> own = Drawing(guidance=Guidance(4.0), top_k=100)
    >>> Drawing(temperature=0.5, top_k=0).completed(own).as_text()
    'guidance 4, temperature 0.5, top-k all, top-p 1'
    """

    #: Classifier-free guidance.
    guidance: Guidance | None = None
    #: Sampling temperature, the divisor of the logits; 0 always takes the most likely id, and then the settings below
    #: have no effect.
    temperature: float = 1.0
    #: Number of the likeliest ids to sample from, 0 to K; 0 means all.
    top_k: int | None = None
    #: Total probability of the likeliest ids to sample from, as few as reach it; 1 means all.
    top_p: float = 1.0
    #: Random numbers by which ids are chosen: one for each id, or one for each id of the codebook. With Gumbel noise a
    #: seed gives another picture; whether a window then needs fewer calls depends on the model.
    noise: NoiseKind = "uniform"

    def __post_init__(self) -> None:
        refuse_drawing(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k or 0)
        refuse_outside("noise", self.noise, self.noise in get_args(NoiseKind), " or ".join(get_args(NoiseKind)))

    def completed(self, own: Drawing) -> Drawing:
        """Return the settings with a model's own values in place of None; without one, a setting is off."""
        guidance = own.guidance if self.guidance is None else self.guidance
        top_k = own.top_k if self.top_k is None else self.top_k
        return Drawing(guidance or Guidance(1.0), self.temperature, top_k or 0, self.top_p, self.noise)

    def as_json(self) -> dict[str, Any]:
        """Return JSON data, with ``guidance`` as the scale, and further keys for a schedule or Gumbel noise."""
        rest = asdict(self)
        if self.noise == "uniform":
            rest.pop("noise")
        guidance = rest.pop("guidance") or {"scale": None}
        usual = asdict(Guidance(1.0)) | {"scale": guidance["scale"]}
        schedule = {f"guidance_{name}": value for name, value in guidance.items() if value != usual[name]}
        return {"guidance": guidance["scale"], **rest, **schedule}

    def as_text(self) -> str:
        """Return one line for a protocol; complete the settings first."""
        values = {name: value if isinstance(value, str) else f"{value:g}" for name, value in self.as_json().items()}
        if not self.top_k:
            values["top_k"] = "all"
        return ", ".join(f"{name.replace('_', '-')} {value}" for name, value in values.items())
