"""Every number of the method: what one ascent is asked for (`Job`), how it goes about it (`Config`), the presets.

Source: Szokalski & Modrzejewski, "Deep Dreams Are Made of This", arXiv 2605.08218, and its implementation; what is
marked (ours) is not in it. Nothing here needs torch, so that help and wrong flags are answered at once.
"""
import dataclasses
import difflib
import operator
import os

HOOK_POINT = "up_blocks.1.attentions.1"         # of the method; an SAE's folder says otherwise
SEEDS = (1024, 1111, 4359, 3248, 1026)
T = 1000                                        # time steps of the schedule, 0..999
REFERENCE_WIDTH = 64                            # latent pixels across the picture for which the strengths were chosen
LARGEST = 1e6                                   # of a setting (ours); AdamW's own arithmetic overflows far above it
FINISH_FROM = (600, 800, 900)                   # time steps that finish_from "auto" tries (ours)
StepOrAuto = int | str                          # a whole number or "auto"
PRIORS = ("steer", "noise", "guided")           # anything else is the path of a picture
LIMITS = {"low": ("at least", operator.ge), "high": ("at most", operator.le), "above": ("above", operator.gt),
          "below": ("below", operator.lt)}


@dataclasses.dataclass(frozen=True)
class Job:
    """One row of a batch: a feature or raw channel by its number, or a direction by its name; a time step; a seed."""
    kind: str                                   # "feature", "channel" or "direction"
    target: int | str
    timestep: int = 0
    seed: int = SEEDS[0]


def setting(default, help, choices=None, **limits):
    """A field of Config: its value is in `choices`, at least `low`, at most `high`, strictly `above` and `below`."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices} | limits)


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are the SAE preset; lengths are in latent pixels of a 64-wide latent."""
    num_steps: int = setting(100, "steps of the ascent", low=1)
    learning_rate: float = setting(0.05, "AdamW's step", above=0)
    beta1: float = setting(0.9, "AdamW's decay of the mean gradient", low=0, below=1)
    beta2: float = setting(0.999, "AdamW's decay of the mean squared gradient", low=0, below=1)
    epsilon: float = setting(1e-8, "AdamW's term against division by zero", above=0)
    weight_decay: float = setting(0.01, "AdamW's pull of the latent towards 0, the eighth regularizer", low=0)
    total_variation_weight: float = setting(0.0, "weight of the neighbour differences", low=0)
    range_weight: float = setting(0.5, "weight of the range penalty", low=0)
    range_threshold: float = setting(3.0, "latent value beyond which the range penalty begins", low=0)
    moment_weight: float = setting(0.5, "weight of |mean| + |std - 1|", low=0)
    gradient_smoothing_sigma_start: float = setting(0.0, "blur of the gradient at the first step; 0 is off", low=0)
    gradient_smoothing_sigma_end: float = setting(0.0, "blur of the gradient at the last step", low=0)
    gradient_smoothing_kernel_size: int = setting(9, "taps of the blur, odd", low=1)
    jitter_max: int = setting(1, "largest roll in both axes", low=0, high=REFERENCE_WIDTH)
    rotate_max: float = setting(5.0, "largest turn in degrees", low=0)
    scale_max: float = setting(1.1, "largest zoom", above=0)
    spectral_filter: bool = setting(True, "divide the gradient's spectrum by frequency + 1")
    noise: bool = setting(True, "see through fresh noise of the time step; off: the UNet sees the clean latent")
    silent_gradient: bool = setting(True, "climb the pre-activation while the feature is silent everywhere (ours)")
    prompt: str = setting("", "text that the UNet sees in ascent, scores and finish; the method's is empty (ours)")
    position: tuple | None = setting(None, "row and column of the hook's grid that counts, not the mean (ours)")
    diverse: float = setting(0.0, "weight of a term that pushes the seeds of a target apart in a batch (ours)", low=0)
    prior: str = setting("steer", "steer or guided, samples pulled to the feature; noise; or a picture's path (ours)")
    prior_steps: int = setting(50, "sampling steps of the prior", low=1, high=T - 1)
    prior_sampler: str = setting("pndm", "sampler of the prior", ("pndm", "ddim"))
    steer_steps: str = setting("active", "steer where the feature is active, or at all steps (ours)", ("active", "all"))
    steer_scale: float = setting(500.0, "steering strength in units of the feature's largest mean activation", low=0)
    finish: bool = setting(True, "let the model redraw the result while the feature pulls (ours)")
    finish_from: StepOrAuto = setting(600, "time step to redraw from; auto: tries three", low=1, high=T - 1)
    finish_scale: float = setting(0.5, "how hard the feature pulls, in units of the noise", low=0)
    finish_steps: int = setting(30, "steps of the redrawing", low=1)

    @property
    def finish_times(self):
        """The time steps that a finish starts from, one of them or all."""
        return FINISH_FROM if self.finish_from == "auto" else (self.finish_from,)


RAW = dict(total_variation_weight=0.5, moment_weight=0.0, gradient_smoothing_sigma_start=0.5, steer_scale=50.0)
NONE = dict(weight_decay=0.0, range_weight=0.0, moment_weight=0.0, jitter_max=0, rotate_max=0.0, scale_max=1.0,
            spectral_filter=False, prior="noise", finish=False)
QUICK = dict(num_steps=40, learning_rate=0.15)  # on top of sae or raw (ours): fewer, larger steps
PRESETS = {"sae": Config(), "raw": Config(**RAW), "none": Config(**NONE)}
SETTINGS = {field.name: field for field in dataclasses.fields(Config)}


def flag(name):
    """Spell a setting's name as people type it: --num-steps, -k."""
    return ("-" if len(name) == 1 else "--") + name.replace("_", "-")


def configure(own, preset=None, kind="feature", **changes):
    """Return a Config: a preset, by default and for quick sae for features, else raw; then what the weights' settings
    `own` (featviz.json) say of it, then `changes`. ValueError for a preset or setting that does not exist."""
    if kind == "direction":                     # no capture knows how strong it is
        changes = {"prior": "guided"} | changes
    quick = QUICK if preset == "quick" else {}
    name = preset if preset and not quick else "sae" if kind == "feature" else "raw"
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}, quick")
    if unknown := changes.keys() - SETTINGS.keys():
        near = difflib.get_close_matches(min(unknown), SETTINGS, cutoff=0.0)
        raise ValueError(f"{min(unknown)} is no setting; nearest: {', '.join(near)}")
    return dataclasses.replace(PRESETS[name], **(own.get("presets", {}).get(name, {}) | quick | changes))


def check_config(config, edge=REFERENCE_WIDTH):
    """Raise ValueError for a setting of the wrong kind or outside its range; `edge` is the width of the latents."""
    for name, field in SETTINGS.items():
        check_setting(name, field, getattr(config, name))
    size, lowest = config.gradient_smoothing_kernel_size, min(config.finish_times)
    if size % 2 == 0 or size >= 2 * edge:
        raise ValueError(f"--gradient-smoothing-kernel-size must be odd and below {2 * edge}, got {size}")
    if config.finish_steps > lowest:
        raise ValueError(f"--finish-steps must be between 1 and --finish-from, {lowest}, got {config.finish_steps}")


def check_setting(name, field, value):
    """Raise ValueError, which names the flag and what it takes, for one setting's value."""
    said, auto = field.metadata, field.type == StepOrAuto
    kind = int if auto else field.type
    if name == "position":
        right = value is None or (isinstance(value, (tuple, list)) and len(value) == 2
                                  and all(type(n) is int and n >= 0 for n in value))
        must = "a row and a column, counted from 0"
    elif name == "prior":
        right = value in PRIORS or os.path.isfile(str(value))
        must = f"one of {', '.join(PRIORS)}, or the path of a picture"
    elif said["choices"]:
        right, must = value in said["choices"], f"one of {', '.join(said['choices'])}"
    elif kind is float:
        right = type(value) in (float, int) and abs(value) <= LARGEST                           # NaN is not <=
        must = f"a number of size {LARGEST:g} at most"
    else:
        right = type(value) is kind or auto and value == "auto"
        must = {int: "a whole number", bool: "true or false", str: "a text"}[kind] + " or auto" * auto
    for word, (text, holds) in LIMITS.items():
        if right and value != "auto" and word in said and not holds(value, said[word]):
            right, must = False, f"{text} {said[word]}"
    if not right:
        raise ValueError(f"{flag(name)} must be {must}, got {value!r}")
