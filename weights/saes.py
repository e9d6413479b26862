"""Check an SAE's config, and read the SAE files of other tools into the one form of sae.py, which convert.py writes.

A file is recognised by the names of its tensors and turned by them, never by its shapes: a square matrix has two.

Sources
 [1] cywinski/SAeUron and EleutherAI/sparsify
 [2] openai/sparse_autoencoder, surkovv/sdxl-unbox; EIDOSLAB/SAEmnesia stores the same tensors beside a cfg.json, and
     reads the output where the others read the update
 [3] saprmarks/dictionary_learning, seven classes
 [4] jbloomAus/SAELens: the config says how its tensors are used
 [5] KempnerInstitute/overcomplete
 [6] revelio-diffusion/revelio: the names of [4], a pickled config, top-k without a relu, on means over positions
"""
import torch

from sae import GATES, NORMS, READS
from weights import WeightsError

CODES, MATRICES = ("encoder.weight", "encoder.bias", "decoder.weight"), ("W_enc", "b_enc", "W_dec", "b_dec")
OPENAI = ("encoder.weight", "latent_bias", "decoder.weight", "pre_bias")
LENS = ("architecture", "d_sae", "sae_lens_version", "apply_b_dec_to_input")
FAMILIES = (    # source; W_enc, b_enc, W_dec, b_dec; one of these is in its config or file, or names it; fields
    ("SAeUron or sparsify", ("encoder.weight", "encoder.bias", "W_dec", "b_dec"), (), {"gate": "topk"}),
    ("SAEmnesia", OPENAI, ("cfg.json",), {"gate": "topk"}),
    ("sdxl-unbox (OpenAI's code)", OPENAI, (), {"gate": "topk", "reads": "update"}),
    ("dictionary_learning, GatedAutoEncoder", ("encoder.weight", "mag_bias", "decoder.weight", "decoder_bias"),
     ("gate_bias",), {"gate": "threshold"}),
    ("dictionary_learning, AutoEncoderTopK or BatchTopKSAE", (*CODES, "b_dec"), (), {"gate": "topk"}),
    ("dictionary_learning, AutoEncoder", (*CODES, "bias"), (), {"gate": "relu"}),
    ("dictionary_learning, AutoEncoderNew", (*CODES, "decoder.bias"), (), {"gate": "relu", "centre": False}),
    ("dictionary_learning, MatryoshkaBatchTopKSAE", MATRICES, ("group_sizes",), {"gate": "topk"}),
    ("dictionary_learning, JumpReluAutoEncoder", MATRICES, ("JumpReluAutoEncoder",),
     {"gate": "threshold", "centre": False}),
    ("Revelio, trained on means over all positions", MATRICES, ("timestep", "num_sampling_steps"),
     {"gate": "signed topk"}),
    ("SAELens", MATRICES, LENS, {}),
    ("overcomplete", ("encoder.final_block.0.weight", "encoder.final_block.0.bias", "dictionary._weights", None),
     ("dictionary.multiplier",), {"centre": False}),
)
TRANSPOSED = ("W_enc", "decoder.weight")                        # stored as (D, F)
ARCHITECTURES = {None: "relu", "standard": "relu", "topk": "topk", "batchtopk": "topk", "matryoshka_batchtopk": "topk",
                 "jumprelu": "threshold"}                       # gates by their names in [4]
RESCALED = {None: "none", "none": "none", "layer_norm": "unit", "constant_norm_rescale": "length"}  # norms, in [4]
KNOWN = {       # fields that change the mathematics, and the values for which there is code
    "activation": ("topk",), "signed": (False,), "skip_connection": (False,), "transcode": (False,),
    "cond_encoder": (False,), "time_embedding_dim": (0,), "gate": GATES, "norm": NORMS, "reads": READS,
    "dict_class": ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK",
                   "BatchTopKSAE", "MatryoshkaBatchTopKSAE"),
    "architecture": ARCHITECTURES, "normalize_activations": RESCALED, "activation_fn": ("relu", "topk"),
    "activation_fn_str": ("relu", "topk"), "reshape_activations": ("none",), "finetuning_scaling_factor": (False,),
    "use_error_term": (False,)}
OURS = ("norm", "centre", "gate", "threshold", "reads", "timesteps")    # fields that our own cfg.json may have, too
USED = {*KNOWN, *OURS, "d_in", "num_latents", "k", "expansion_factor", "input_unit_norm", "d_model", "n_dirs_local",
        "d_sae", "source", "activation_fn_kwargs", "apply_b_dec_to_input", "rescale_acts_by_decoder_norm"}
HARMLESS = set(     # fields, and words of fields, that say how an SAE was trained, on what, where it is
    "normalize_decoder batch_topk sample_topk multi_topk num_timesteps time_embedding_type hookpoint hook_point "
    "lr l1 l0 adam beta beta1 beta2 optimizer scheduler warmup warm up decay epochs steps batch batches size seed "
    "device dtype wandb log eval dataset path tokens prompts prepend bos context buffer store model class name layer "
    "head index hook version training train trainer sae lens neuronpedia id metadata source loss coefficient mse aux "
    "auxk dead threshold feature window init method checkpoint save dir clip grad compile autocast tags max n".split())
COUNTERS = {"k", "group_sizes", "stats_last_nonzero", "num_batches_not_active"}
MARKS = {name for _, names, *_ in FAMILIES for name in names[2:]}                   # one of them is in any SAE


def refuse(config, path):
    """WeightsError for a field's value that no code here computes."""
    for key, known in KNOWN.items():
        if config.get(key) not in (None, *known):
            raise WeightsError(f"{path}: {key} is {str(config[key])[:80]}, for which there is no code here")


def harmless(config, path):
    """Names of the fields that only say how an SAE was trained; WeightsError for one that may mean something else."""
    off = (None, False, 0, "", "none", [], {})
    left = [key for key, value in config.items() if key not in USED and value not in off]
    for key in left:
        if key not in HARMLESS and not {*key.lower().split("_")} <= HARMLESS:
            raise WeightsError(f"{path}: nobody here knows the field {key} = {str(config[key])[:60]}, which may change "
                               "the mathematics; take it out of the config if it does not")
    return left


def read_sae_config(config, path):
    """What sae.SAE is built with, from our cfg.json or SAeUron's; its values stand where a field is missing."""
    refuse(config, path)
    harmless(config, path)
    usual = {"d_in": 0, "num_latents": 0, "k": 0, "centre": True, "gate": "topk", "reads": "output", "threshold": None,
             "norm": "unit" if config.get("input_unit_norm") else "none", "timesteps": "all"}
    fields = usual | {key: config[key] for key in usual if config.get(key) is not None}
    fields["num_latents"] = fields["num_latents"] or int(config.get("expansion_factor", 0) * fields["d_in"])
    if "topk" in fields["gate"] and fields["k"] not in range(1, fields["num_latents"] + 1):
        raise WeightsError(f"{path}: k is {fields['k']}, expected 1 to {fields['num_latents']}, the number of features")
    times = [] if fields["timesteps"] == "all" else fields["timesteps"]
    if not isinstance(times, list) or not all(type(t) is int for t in times):
        raise WeightsError(f'{path}: timesteps is {str(times)[:80]}, expected "all" or a list of time steps')
    return fields | {"timesteps": (*times,)}


def read_tensors(tensors, names, config, source, path):
    """({our name: tensor}, the tensors that are left) of an SAE's file whose family has these names."""
    left = dict(tensors)

    def take(name):
        return left.pop(name).float() if name in left else None

    weight, bias, rows, shift = (take(name).T if name in TRANSPOSED else take(name) for name in names)
    parts = {"encoder.weight": weight, "encoder.bias": bias, "W_dec": rows, "b_dec": shift}
    shapes = [list(part.shape) for part in parts.values() if part is not None]
    F, D = (*shapes[0], 0, 0)[:2]
    if shapes != [[F, D], [F], [F, D], [D]][:len(shapes)]:
        raise WeightsError(f"{path}: has shapes that do not fit together: {shapes}")
    if "r_mag" in left:     # relu(e^r u + b_mag) where u + b_gate > 0: the same as e^r u + b_mag > b_mag - e^r b_gate
        scale = take("r_mag").exp()
        parts |= {"encoder.weight": weight * scale[:, None], "threshold": bias - scale * take("gate_bias")}
    if source == "overcomplete":                                # normalises the rows; its decoder has no bias
        rows = rows / (rows.norm(dim=1, keepdim=True) + 1e-8) * take("dictionary.multiplier").exp()
        parts |= {"W_dec": rows, "b_dec": torch.zeros(D)}
    if config.get("rescale_acts_by_decoder_norm") or source == "dictionary_learning, AutoEncoder":
        norm = rows.norm(dim=1)                                 # codes grow by what the rows lose
        parts |= {"encoder.weight": weight * norm[:, None], "encoder.bias": bias * norm, "W_dec": rows / norm[:, None]}
    if "thresholds" in left:                                    # logarithms [5]
        parts["threshold"] = take("thresholds").exp()
    elif "threshold" in left:
        parts["threshold"] = take("threshold")
    return parts, left


def read_sae(tensors, config, path, config_name=""):
    """({our name: tensor}, fields of our cfg.json, names of fields that change nothing) of an SAE's file.

    config: the object beside it or in it, {} where there is none; its file's name tells two families apart.
    """
    config = config.get("trainer", config)                      # [3]
    places = [config.get(key) for key in ("hookpoint", "hook_point", "hook_name", "submodule_name")]
    if ("latent_bias" in tensors and "auxk_coef" in config and config_name != "cfg.json"
            or any("text_" in str(place) for place in [*places, path.parent.name])):
        raise WeightsError(f"{path}: is an SAE of a text encoder, for which there is no code here")
    bias = tensors.get("encoder.bias", torch.zeros(0))
    if "k" in tensors and tensors["k"].eq(len(bias)).all() and not bias.any():
        raise WeightsError(f"{path}: lost the latent_bias that it had at sdxl-unbox, to a tool that made another SAE "
                           "of it, for which there is no code here")
    refuse(config, path)
    present = {*tensors, *config, config_name, config.get("dict_class")}
    family = next((family for family in FAMILIES if {*family[1]} <= {*tensors, None}
                   and (not family[2] or present & {*family[2]})), None)
    if not family:
        raise WeightsError(f"{path}: is an SAE of no family that is known here, or needs its config; put its config "
                           f"(cfg.json or config.json) beside it; its tensors are {', '.join(sorted(tensors)[:12])}")
    source, names, _, special = family
    parts, left = read_tensors(tensors, names, config, source, path)
    F, D = parts["W_dec"].shape
    fields = {"norm": "unit" if config.get("input_unit_norm") else RESCALED[config.get("normalize_activations")],
              "centre": config.get("apply_b_dec_to_input", True), "gate": ARCHITECTURES[config.get("architecture")],
              "reads": "output", "timesteps": "all", "source": source}
    fields |= special | {key: config[key] for key in OURS if key in config}
    if type(config.get("timestep")) is int:                     # [6]
        fields["timesteps"] = [config["timestep"]]
    kwargs = config.get("activation_fn_kwargs") or {}
    numbers = (config.get("k"), config.get("top_k"), kwargs.get("k"), int(tensors.get("k", 0)))
    k = next((n for n in numbers if type(n) is int and n > 0), None)
    if fields["gate"] == "relu" and ("topk" in (config.get("activation_fn"), config.get("activation_fn_str"))
                                     or source == "overcomplete" and k):
        fields["gate"] = "topk"
    threshold = parts.pop("threshold", None)
    if threshold is not None and (fields["gate"] == "threshold" or (        # top-k over a batch has one after training
            (threshold >= 0).any() and config.get("dict_class") != "AutoEncoderTopK")):
        fields["gate"], parts["threshold"] = "threshold", threshold.expand(len(parts["W_dec"]))
    if k and fields["gate"] != "relu":
        fields["k"] = k
    need = {"relu": "gate", "threshold": "threshold"}.get(fields["gate"], "k")
    if need not in {*parts, *fields}:
        raise WeightsError(f"{path}: says nowhere what {need} is; put its config beside it")
    if extra := sorted(left.keys() - COUNTERS):
        raise WeightsError(f"{path}: has a tensor {extra[0]!r} for which there is no code here")
    trained = source.startswith(("dictionary_learning", "Revelio", "overcomplete"))     # a config about training alone
    return parts, {"d_in": D, "num_latents": F} | fields, [] if trained else harmless(config, path)
