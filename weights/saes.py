"""Check an SAE's config, and read the SAE files of other tools into the one form of sae.py, which convert.py writes.

A file is recognised by the names of its tensors and turned by them, never by its shapes: a square matrix has two.

Sources
 [1] cywinski/SAeUron and EleutherAI/sparsify
 [2] openai/sparse_autoencoder, surkovv/sdxl-unbox; EIDOSLAB/SAEmnesia: the same tensors beside a cfg.json
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
    ("Revelio, trained on means over positions", MATRICES, ("timestep", "num_sampling_steps"), {"gate": "signed topk"}),
    ("SAELens", MATRICES, ("architecture", "d_sae", "sae_lens_version", "apply_b_dec_to_input"), {}),
    ("overcomplete", ("encoder.final_block.0.weight", "encoder.final_block.0.bias", "dictionary._weights",
                      "dictionary.multiplier"), (), {"centre": False}),
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
OURS = ("norm", "centre", "gate", "threshold", "reads", "timesteps", "k")      # fields of our own cfg.json
USED = {*KNOWN, *OURS, "d_in", "num_latents", "expansion_factor", "input_unit_norm", "d_model", "n_dirs_local", "d_sae",
        "source", "activation_fn_kwargs", "apply_b_dec_to_input", "rescale_acts_by_decoder_norm"}
HARMLESS = set(     # fields, and words of fields, that say how an SAE was trained, on what, where it is
    "normalize_decoder batch_topk sample_topk multi_topk num_timesteps time_embedding_type hookpoint hook_point "
    "lr l1 l0 adam beta beta1 beta2 optimizer scheduler warmup warm up decay epochs steps batch batches size seed "
    "device dtype wandb log eval dataset path tokens prompts prepend bos context buffer store model class name layer "
    "head index hook version training train trainer sae lens neuronpedia id metadata source loss coefficient mse aux "
    "auxk dead threshold feature window init method checkpoint save dir clip grad compile autocast tags max n".split())
MARKS = {name for _, names, *_ in FAMILIES for name in names[2:]}                   # one of them is in any SAE


def read_fields(config, path, special, trained=False):
    """Return ({field: value} of our cfg.json, names of fields that change nothing) of a config of any family. special:
    what the family decides; trained: whether unknown fields of such a config are about training alone."""
    left = []
    for key, value in config.items():
        if key in KNOWN and value not in (None, *KNOWN[key]):
            raise WeightsError(f"{path}: {key} is {str(value)[:80]}, for which there is no code here")
        if trained or key in USED or value in (None, False, 0, "", "none", [], {}):
            continue
        if key not in HARMLESS and not {*key.lower().split("_")} <= HARMLESS:
            raise WeightsError(f"{path}: nobody here knows the field {key} = {str(value)[:60]}, which may change the "
                               "mathematics; take it out of the config if it does not")
        left.append(key)
    topk = "topk" in (config.get("activation_fn"), config.get("activation_fn_str"))
    fields = {"norm": "unit" if config.get("input_unit_norm") else RESCALED[config.get("normalize_activations")],
              "centre": config.get("apply_b_dec_to_input", True),
              "gate": "topk" if topk else ARCHITECTURES[config.get("architecture")], "reads": "output",
              "timesteps": [config["timestep"]] if type(config.get("timestep")) is int else "all",          # [6]
              "k": config.get("top_k") or (config.get("activation_fn_kwargs") or {}).get("k", 0)}
    return fields | special | {key: config[key] for key in OURS if config.get(key) is not None}, left


def read_sae_config(config, path):
    """Return the arguments of sae.SAE, from our cfg.json or SAeUron's, whose values stand where a field is missing."""
    fields, _ = read_fields(config, path, {"gate": "topk"})
    D, F = (config.get(key) or 0 for key in ("d_in", "num_latents"))
    F = F or int(config.get("expansion_factor", 0) * D)
    if "topk" in fields["gate"] and fields["k"] not in range(1, F + 1):
        raise WeightsError(f"{path}: k is {fields['k']}, expected 1 to {F}, the number of features")
    times = [] if fields["timesteps"] == "all" else fields["timesteps"]
    if not isinstance(times, list) or not all(type(t) is int for t in times):
        raise WeightsError(f'{path}: timesteps is {str(times)[:80]}, expected "all" or a list of time steps')
    return fields | {"d_in": D, "num_latents": F, "timesteps": (*times,)}


def read_tensors(tensors, names, config, source, path):
    """Return ({our name: tensor}, threshold or None), float32, of a file whose family has these names."""
    left = {name: (tensor.T if name in TRANSPOSED else tensor).float() for name, tensor in tensors.items()}
    weight, bias, rows, shift = map(left.pop, names)
    if source == "overcomplete":                                # normalises the rows; its decoder has no bias
        rows = rows / (rows.norm(dim=-1, keepdim=True) + 1e-8) * shift.exp()
        shift = torch.zeros(rows.shape[-1])
    shapes, F, D = [list(part.shape) for part in (weight, bias, rows, shift)], bias.numel(), shift.numel()
    if shapes != [[F, D], [F], [F, D], [D]]:
        raise WeightsError(f"{path}: has shapes that do not fit together: {shapes}")
    if "r_mag" in left:     # relu(e^r u + b_mag) where u + b_gate > 0: the same as e^r u + b_mag > b_mag - e^r b_gate
        scale = left.pop("r_mag").exp()
        weight, left["threshold"] = weight * scale[:, None], bias - scale * left.pop("gate_bias")
    if config.get("rescale_acts_by_decoder_norm") or source == "dictionary_learning, AutoEncoder":
        norm = rows.norm(dim=1)                                 # codes grow by what the rows lose
        weight, bias, rows = weight * norm[:, None], bias * norm, rows / norm[:, None]
    threshold = left.pop("thresholds").exp() if "thresholds" in left else left.pop("threshold", None)           # [5]
    if extra := sorted(left.keys() - {"k", "group_sizes", "stats_last_nonzero", "num_batches_not_active"}):
        raise WeightsError(f"{path}: has a tensor {extra[0]!r} for which there is no code here")
    return {"encoder.weight": weight, "encoder.bias": bias, "W_dec": rows, "b_dec": shift}, threshold


def read_sae(tensors, config, path, config_name=""):
    """Return ({our name: tensor}, fields of our cfg.json, names of fields that change nothing) of an SAE's file.
    config: the object beside or in it, or {}; config_name: its file, which tells two families apart."""
    config = config.get("trainer", config)                      # [3]
    places = [config.get(key) for key in ("hookpoint", "hook_point", "hook_name", "submodule_name")]
    if ("latent_bias" in tensors and "auxk_coef" in config and config_name != "cfg.json"
            or any("text_" in str(place) for place in [*places, path.parent.name])):
        raise WeightsError(f"{path}: is an SAE of a text encoder, for which there is no code here")
    bias = tensors.get("encoder.bias", torch.zeros(0))
    if "k" in tensors and tensors["k"].eq(len(bias)).all() and not bias.any():
        raise WeightsError(f"{path}: lost the latent_bias that sdxl-unbox gave it; convert the file from there")
    present = {*tensors, *config, config_name, config.get("dict_class")}
    source, names, _, special = next((family for family in FAMILIES if {*family[1]} <= tensors.keys()
                                      and (not family[2] or present & {*family[2]})), ("", (), (), {}))
    trained = not source or source.startswith(("dictionary_learning", "Revelio", "overcomplete"))
    fields, left = read_fields(config, path, special, trained)
    if not source:
        raise WeightsError(f"{path}: is an SAE of an unknown family, or needs its config; put its config (cfg.json or "
                           f"config.json) beside it; its tensors are {', '.join(sorted(tensors)[:12])}")
    parts, threshold = read_tensors(tensors, names, config, source, path)
    F, D = parts["W_dec"].shape
    k = fields.pop("k") or int(tensors.get("k", 0))
    if source == "overcomplete" and k and fields["gate"] == "relu":
        fields["gate"] = "topk"
    if threshold is not None and (fields["gate"] == "threshold" or (        # top-k over a batch has one after training
            (threshold >= 0).any() and config.get("dict_class") != "AutoEncoderTopK")):
        fields["gate"], parts["threshold"] = "threshold", threshold.expand(F)
    if k and fields["gate"] != "relu":
        fields["k"] = k
    need = {"relu": "gate", "threshold": "threshold"}.get(fields["gate"], "k")
    if need not in {*parts, *fields}:
        raise WeightsError(f"{path}: says nowhere what {need} is; put its config beside it")
    return parts, {"d_in": D, "num_latents": F, "source": source} | fields, left
