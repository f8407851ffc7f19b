"""The options of the colour operations of views. No torch."""

from dataclasses import dataclass

from data_shards.errors import DataError

FULL_SIDE = 224  # pixels of the side that blur_sigma is given for


@dataclass(frozen=True, kw_only=True)
class ViewColours:
    """BYOL's operations on each view of a sample (Grill et al. 2020, appendix B); a probability of 0: never.

    `blur_prob` and `solarize_prob` have one value a view. DataError when a value is out of its range.
    """

    jitter_prob: float = 0.8  # of the next four, which come in an order of the view's own
    brightness: float = 0.4  # the factor lies in 1 - 0.4 ... 1 + 0.4; 0 turns it off, as for the next three
    contrast: float = 0.4  # likewise
    saturation: float = 0.2  # likewise
    hue: float = 0.1  # added to every hue: -0.1 ... 0.1 of a turn of the circle of colours
    gray_prob: float = 0.2  # of a view without colours
    blur_prob: tuple[float, ...] = (1.0, 0.1)  # of a Gaussian blur, by view
    blur_sigma: tuple[float, float] = (
        0.1,
        2.0,
    )  # pixels of views of 224 pixels; scaled with their short side
    solarize_prob: tuple[float, ...] = (0.0, 0.2)  # of inverted bright values, by view
    solarize_threshold: int = 128  # the first value that is inverted

    def __post_init__(self) -> None:
        for name in ("jitter_prob", "gray_prob", "blur_prob", "solarize_prob"):
            value = getattr(self, name)
            if not all(0 <= prob <= 1 for prob in (value if isinstance(value, tuple) else (value,))):
                raise DataError(f"colours.{name} ({_shown(value)}) must be in 0 ... 1")
        for name, limit in {"brightness": 100, "contrast": 100, "saturation": 100, "hue": 0.5}.items():
            if not 0 <= (value := getattr(self, name)) <= limit:
                raise DataError(f"colours.{name} ({value}) must be in 0 ... {limit}; 0 turns it off")
        low, high = self.blur_sigma
        if not 0 <= low <= high <= FULL_SIDE:
            raise DataError(
                f"colours.blur_sigma ([{low}, {high}]) must be 0 <= low <= high <= {FULL_SIDE}, for example "
                "[0.1, 2.0]"
            )
        if not 0 <= self.solarize_threshold <= 256:
            raise DataError(f"colours.solarize_threshold ({self.solarize_threshold}) must be in 0 ... 256")
        if len(self.blur_prob) != len(self.solarize_prob):
            raise DataError(
                f"colours.blur_prob ({_shown(self.blur_prob)}) and colours.solarize_prob "
                f"({_shown(self.solarize_prob)}) must have one value for each view"
            )

    @property
    def views(self) -> int:
        """The views that there are probabilities for."""
        return len(self.blur_prob)


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
