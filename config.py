"""Every number of the method: what one ascent is asked for (`Job`) and how it goes about it (`Config`), with the
presets.

Source: Szokalski & Modrzejewski, "Deep Dreams Are Made of This", arXiv 2605.08218, and its implementation; what is
marked (ours) is not in it. Nothing here needs torch, so that help and wrong flags are answered at once.
"""
import dataclasses
from dataclasses import dataclass

HOOK_POINT = "up_blocks.1.attentions.1"         # of the method; an SAE's folder says otherwise
SEEDS = (1024, 1111, 4359, 3248, 1026)
TOP = 20                                        # a feature counts as active in an image when it is among so many
DISTANCE, PEAKS = 100, 3                        # time steps between peaks of its activity; peaks kept
HALVES = ("conditional", "both")                # of the guided batch: what activity counts (activity/capture.py)
REFERENCE_WIDTH = 64                            # latent pixels across the picture for which the strengths were chosen
LARGEST = 1e6                                   # of a setting (ours); AdamW's own arithmetic overflows far above it


@dataclass(frozen=True)
class Job:
    """One row of a batch: a feature (or, with feature None, a raw channel), a time step 0..999, a seed."""
    feature: int | None = None
    timestep: int = 0
    seed: int = SEEDS[0]
    channel: int | None = None

    @property
    def kind(self):
        return "channel" if self.feature is None else "feature"

    @property
    def target(self):
        return self.channel if self.feature is None else self.feature


def scale(text):
    """A setting's type: a number, or auto."""
    return text if text == "auto" else float(text)


def moment(text):
    """A setting's type: a time step, or auto."""
    return text if text == "auto" else int(text)


AUTO = {scale: float, moment: int}
scale.__name__, moment.__name__ = "number or 'auto'", "whole number or 'auto'"      # as the command line names them
FINISH_FROM = (600, 800, 900)                   # time steps that finish_from "auto" tries (ours)
STRENGTHS = (0.2, 0.4, 0.8, 1.6)                # pulls that finish_scale "auto" tries, in this order (ours)


def setting(default, help, choices=None):
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Config:
    """The defaults are the SAE preset; lengths are in latent pixels of a 64-wide latent."""
    space: str = setting("latent", "what the ascent moves: the latent, or the pixels in front of the encoder",
                         ("latent", "pixel"))
    num_steps: int = setting(100, "steps of the ascent")
    learning_rate: float = setting(0.05, "AdamW's step")
    beta1: float = setting(0.9, "AdamW's decay of the mean gradient")
    beta2: float = setting(0.999, "AdamW's decay of the mean squared gradient")
    epsilon: float = setting(1e-8, "AdamW's term against division by zero")
    weight_decay: float = setting(0.01, "AdamW's pull of the latent towards 0, the eighth regularizer")
    total_variation_weight: float = setting(0.0, "weight of the neighbour differences")
    range_weight: float = setting(0.5, "weight of the range penalty")
    range_threshold: float = setting(3.0, "latent value beyond which the range penalty begins")
    moment_weight: float = setting(0.5, "weight of |mean| + |std - 1|")
    gradient_smoothing_sigma_start: float = setting(0.0, "blur of the gradient at the first step; 0 is off")
    gradient_smoothing_sigma_end: float = setting(0.0, "blur of the gradient at the last step")
    gradient_smoothing_kernel_size: int = setting(9, "taps of the blur, odd")
    jitter_max: int = setting(1, "largest roll in both axes")
    rotate_max: float = setting(5.0, "largest turn in degrees")
    scale_max: float = setting(1.1, "largest zoom")
    spectral_filter: bool = setting(True, "divide the gradient's spectrum by frequency + 1")
    noise: bool = setting(True, "see through fresh noise of the time step; off: the UNet sees the clean latent")
    silent_gradient: bool = setting(True, "climb the pre-activation while the feature is silent everywhere (ours)")
    prior: str = setting("steer", "start: a sample steered towards the feature, noise, or a sample guided by it (ours)",
                         ("steer", "noise", "guided"))
    prior_steps: int = setting(50, "sampling steps of the prior")
    prior_sampler: str = setting("pndm", "sampler of the prior", ("pndm", "ddim"))
    steer_steps: str = setting("active", "steer each time step by its own largest mean activation: where the feature "
                               "is active, or at all; or all by the same, the largest (ours)",
                               ("active", "all", "constant"))
    steer_scale: float = setting(500.0, "steering strength in units of the feature's largest mean activation")
    finish: bool = setting(True, "let the model redraw the result while the feature pulls (ours)")
    finish_from: moment = setting(600, "time step to which the result is noised and redrawn from; auto: tries three")
    finish_scale: scale = setting("auto", "how hard the feature pulls, in units of the noise; auto: as hard as it must")
    finish_steps: int = setting(30, "steps of the redrawing")


RAW = dict(total_variation_weight=0.5, moment_weight=0.0, gradient_smoothing_sigma_start=0.5, steer_scale=50.0)
NONE = dict(weight_decay=0.0, range_weight=0.0, moment_weight=0.0, jitter_max=0, rotate_max=0.0, scale_max=1.0,
            spectral_filter=False, prior="noise", finish=False)
QUICK = dict(num_steps=40, learning_rate=0.15)      # on top of sae or raw (ours) [docs/measured.md, fewer steps]
PRESETS = {"sae": Config(), "raw": Config(**RAW), "none": Config(**NONE)}
ROBUSTNESS = [dict(jitter_max=J, rotate_max=R, scale_max=Z)     # transformation robustness by level, 0..3
              for J, R, Z in ((0, 0.0, 1.0), (1, 5.0, 1.1), (8, 15.0, 1.2), (16, 45.0, 1.8))]
NOT_NEGATIVE = ("weight_decay", "total_variation_weight", "range_weight", "range_threshold", "moment_weight",
                "gradient_smoothing_sigma_start", "gradient_smoothing_sigma_end", "rotate_max", "steer_scale")
SETTINGS = {field.name: field for field in dataclasses.fields(Config)}


def flag(name):
    """A setting's name as people type it: --num-steps."""
    return "--" + name.replace("_", "-")


def find_preset(name, channel):
    """The preset of that name, or without one that of what is looked at, and what changes in it: quick changes either.
    """
    usual = "raw" if channel else "sae"
    return (usual, QUICK) if name == "quick" else (name or usual, {})


def configure(own, preset="sae", **changes):
    """A preset, then what the weights' own settings `own` (featviz.json) say of it, then `changes`;
    unknown names raise TypeError.
    """
    return dataclasses.replace(PRESETS[preset], **(own.get("presets", {}).get(preset, {}) | changes))


def check_config(config, edge=REFERENCE_WIDTH, T=1000):
    """ValueError for a setting of the wrong kind or outside its range; latents are `edge` wide, the
    schedule has T time steps.
    """
    for name, field in SETTINGS.items():
        value, choices = getattr(config, name), field.metadata["choices"]
        if field.type in AUTO and value == "auto":
            continue
        wanted = AUTO.get(field.type, field.type)
        whole = type(value) is int and wanted is float
        if type(value) is not wanted and not whole or wanted is float and not abs(value) <= LARGEST:
            kind = {float: f"a number of size {LARGEST:g} at most", int: "a whole number", bool: "true or false"}
            or_auto = " or auto" * (field.type in AUTO)
            raise ValueError(f"{flag(name)} must be {kind.get(wanted, 'a name')}{or_auto}, got {value!r}")
        if choices and value not in choices:
            raise ValueError(f"{flag(name)} must be one of {', '.join(choices)}, got {value!r}")
    size = config.gradient_smoothing_kernel_size
    lowest = min(FINISH_FROM) if config.finish_from == "auto" else config.finish_from
    for bad, text in (
            (config.num_steps < 1, "--num-steps must be at least 1"),
            (not 1 <= config.prior_steps < T, f"--prior-steps must be between 1 and {T - 1}"),
            (config.learning_rate <= 0, "--learning-rate must be above 0"),
            (not 0 <= config.beta1 < 1, "--beta1 must be between 0 and 1"),
            (not 0 <= config.beta2 < 1, "--beta2 must be between 0 and 1"),
            (config.epsilon <= 0, "--epsilon must be above 0"),
            *((getattr(config, name) < 0, f"{flag(name)} must be at least 0") for name in NOT_NEGATIVE),
            (size % 2 == 0 or not 1 <= size < 2 * edge,
             f"--gradient-smoothing-kernel-size must be odd and below {2 * edge}"),
            (not 0 <= config.jitter_max <= REFERENCE_WIDTH, f"--jitter-max must be between 0 and {REFERENCE_WIDTH}"),
            (config.scale_max <= 0, "--scale-max must be above 0"),
            (not 1 <= lowest < T, f"--finish-from must be between 1 and {T - 1}, or auto"),
            (not 1 <= config.finish_steps <= lowest, f"--finish-steps must be between 1 and --finish-from, {lowest}"),
            (config.finish_scale != "auto" and config.finish_scale < 0, "--finish-scale must be at least 0, or auto")):
        if bad:
            raise ValueError(text)
