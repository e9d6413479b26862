"""Read the SAE files of other tools into the one form of sae.py; convert.py writes what comes out.

A file is recognised by the names of its tensors and turned by them, never by its shapes: a square matrix has two.

Sources, one a family
 [1] cywinski/SAeUron and EleutherAI/sparsify: encoder.weight (F, D), encoder.bias, W_dec (F, D), b_dec
 [2] openai/sparse_autoencoder, surkovv/sdxl-unbox: pre_bias, latent_bias, decoder.weight (D, F); EIDOSLAB/SAEmnesia
     stores the same tensors beside a cfg.json, and reads the output where the others read the update
 [3] saprmarks/dictionary_learning, seven classes
 [4] jbloomAus/SAELens: W_enc (D, F), b_enc, W_dec (F, D), b_dec; the config says how they are used
 [5] KempnerInstitute/overcomplete: encoder.final_block, dictionary
 [6] revelio-diffusion/revelio: the names of [4], a pickled config, top-k without a relu, on means over positions
"""
import torch

from weights.load import FIXED, SAE_FIELDS, WeightsError, check_fixed

MARKS = {"b_dec", "pre_bias", "W_dec", "decoder.weight", "dictionary._weights", "decoder_bias"}  # one of them is in any
BEGINNINGS = ("_orig_mod.", "module.", "sae.", "ae.", "model.")                     # that wrappers put before all names
TIMED = ("time", "film", "shift", "scale_t", "t_emb")           # parts of names that a time embedding has
CLASSES = {"AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK",
           "BatchTopKSAE", "MatryoshkaBatchTopKSAE"}            # of [3]
HARMLESS = set(     # words in names of fields that say how an SAE was trained, on what, where it is
    "lr batch epoch epochs steps seed device dtype wandb log save aux auxk dead warmup decay optimizer adam loss l1 l0 "
    "coefficient tokens dataset prompt prompts context buffer model name layer hook hookpoint path dir version "
    "training expansion checkpoint bos seqpos neuronpedia metadata meta kwargs tags source description n dirs latents "
    "special class noise workers num max size grad clip eval every run project entity beta betas micro shuffle cache "
    "repo author date license trainer total".split())
RISKY = set("norm normalize activation activations skip gate gated scale scaling embedding bias threshold rescale "
            "reshape transcode transcoder time group signed output out".split())
OFF = (None, False, 0, "", "none", [], {})


def is_sae(tensors):
    return bool(MARKS & strip(tensors).keys())


def strip(tensors):
    """The tensors without a beginning that all names share."""
    for start in BEGINNINGS:
        if tensors and all(name.startswith(start) for name in tensors):
            return strip({name.removeprefix(start): t for name, t in tensors.items()})
    return tensors


def harmless(config, used, path):
    """Names of the fields that change nothing; WeightsError for one that is on and may change the mathematics."""
    left = [key for key, value in config.items() if key not in used and value not in OFF]
    for key in left:
        words = {*key.lower().split("_")}
        if key not in SAE_FIELDS and "dead" not in words and (words & RISKY or not words & HARMLESS):
            raise WeightsError(f"{path}: nobody here knows the field {key} = {str(config[key])[:60]}, which may change "
                               "the mathematics; take it out of the config if it does not")
    return left


class Reader:
    """The tensors of one file, each to be taken once; `done` refuses what is left."""

    def __init__(self, tensors, config, path):
        self.tensors, self.config, self.path = dict(strip(tensors)), config, path

    def has(self, *names):
        return {*names} <= self.tensors.keys()

    def take(self, name, default=None):
        tensor = self.tensors.pop(name, default)
        return tensor.float() if isinstance(tensor, torch.Tensor) else tensor

    def refuse(self, why):
        raise WeightsError(f"{self.path}: {why}")

    def need(self, key, *names):
        """A whole number above 0 of the config or, by the same name, of the file."""
        for name in (key, *names):
            value = self.config.get(name)
            if value is None and name in self.tensors and self.tensors[name].ndim == 0:
                value = int(self.tensors[name])
            if type(value) is int and value > 0:
                return value
        self.refuse(f"says nowhere what {key} is; put its config beside it")

    def done(self):
        if self.tensors:
            timed = any(part in name.lower() for name in self.tensors for part in TIMED)
            self.refuse(f"has a tensor {min(self.tensors)!r} that may change the mathematics"
                        + ": this SAE depends on the time step by more than a list of them" * timed)


def read_sae(tensors, config, path, config_name=""):
    """({our name: tensor}, fields of our cfg.json, names of fields that change nothing) of an SAE's file.

    config: the object beside it or in it, {} where there is none; its file's name tells two families apart.
    """
    r = Reader(tensors, config, path)
    places = [config.get(key) for key in ("hookpoint", "hook_point", "hook_name", "submodule_name")]
    if any("text_" in str(place) for place in [*places, path.parent.name]):         # text_encoder, text_model
        r.refuse("is an SAE of a text encoder; only those of a UNet can be used")
    for read in (read_sparsify, read_openai, read_dictionary, read_matrices, read_overcomplete):
        if found := read(r, config_name):
            parts, fields = found
            break
    else:
        timed = any(part in name.lower() for name in r.tensors for part in TIMED)
        r.refuse("this SAE has a time embedding, for which there is no code here" if timed else
                 "is an SAE of no family that is known here; its tensors are " + ", ".join(sorted(r.tensors)[:12]))
    for name in ("k", "group_sizes", "stats_last_nonzero", "num_batches_not_active"):
        r.take(name)
    r.done()
    checked = {name: parts[name].contiguous() for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec")}
    if fields["gate"] == "threshold" and "threshold" not in fields:
        checked["threshold"] = parts["threshold"].expand(len(parts["W_dec"])).contiguous()
    F, D = checked["encoder.weight"].shape
    if [list(checked[name].shape) for name in ("encoder.bias", "W_dec", "b_dec")] != [[F], [F, D], [D]]:
        r.refuse(f"has shapes that do not fit together: {({name: list(t.shape) for name, t in checked.items()})}")
    left = fields.pop("left", [])
    usual = {"norm": "none", "centre": True, "reads": "output", "timesteps": "all"}
    return checked, {"d_in": D, "num_latents": F} | usual | fields, left


def read_sparsify(r, _):
    if not r.has("encoder.weight", "encoder.bias", "W_dec", "b_dec"):
        return None
    if r.has("W_skip"):
        r.refuse("has a skip connection (W_skip), for which there is no code here")
    check_fixed(r.config, FIXED["sae"], r.path, "there is no code here for this kind of SAE")
    fields = {key: r.config[key] for key in ("norm", "centre", "gate", "threshold", "reads", "timesteps")
              if key in r.config}
    if r.config.get("input_unit_norm"):
        fields["norm"] = "unit"
    fields = {"gate": "topk", "source": "SAeUron or sparsify"} | fields
    if "topk" in fields["gate"]:
        fields["k"] = r.need("k")
    left = harmless(r.config, {"d_in", "num_latents", "k", "input_unit_norm", *fields, *FIXED["sae"]}, r.path)
    parts = {name: r.take(name) for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec", "threshold")}
    return parts, fields | {"left": left}


def read_openai(r, config_name):
    if not r.has("encoder.weight", "decoder.weight", "pre_bias"):
        return None
    if not r.has("latent_bias"):
        r.refuse("has pre_bias and no latent_bias, as SAEs of FLUX; that is no UNet of Stable Diffusion")
    if "auxk_coef" in r.config and config_name != "cfg.json":
        r.refuse("is an SAE of a text encoder (Concept Steerers); only those of a UNet can be used")
    saemnesia = config_name == "cfg.json"
    check_fixed(r.config, FIXED["sae"], r.path, "there is no code here for this kind of SAE")
    left = harmless(r.config, {"d_in", "d_model", "k", "n_dirs_local", "num_latents", "input_unit_norm", *FIXED["sae"]},
                    r.path)
    parts = {"encoder.weight": r.take("encoder.weight"), "encoder.bias": r.take("latent_bias"),
             "W_dec": r.take("decoder.weight").T, "b_dec": r.take("pre_bias")}
    return parts, {"gate": "topk", "k": r.need("k"), "reads": "output" if saemnesia else "update",
                   "norm": "unit" if r.config.get("input_unit_norm") else "none", "left": left,
                   "source": "SAEmnesia" if saemnesia else "sdxl-unbox (OpenAI's code)"}


def unit_rows(parts):
    """The same SAE with decoder rows of norm 1: codes grow by the norm that the rows lose."""
    n = parts["W_dec"].norm(dim=1)
    return parts | {"encoder.weight": parts["encoder.weight"] * n[:, None], "encoder.bias": parts["encoder.bias"] * n,
                    "W_dec": parts["W_dec"] / n[:, None]}


def gated(weight, r_mag, gate_bias, mag_bias):
    """A gated encoder, relu(e^r u + b_mag) where u + b_gate > 0, is one with thresholds: u + b_gate > 0 is the same as
    e^r u + b_mag > b_mag - e^r b_gate.
    """
    scale = r_mag.exp()
    return {"encoder.weight": weight * scale[:, None], "encoder.bias": mag_bias,
            "threshold": mag_bias - scale * gate_bias}


def batch_gate(r, dict_class=""):
    """Top-k over a batch is a threshold afterwards; -1 is one that was never set, and top-k itself has none."""
    threshold = r.take("threshold")
    if threshold is None or (threshold < 0).all() or dict_class == "AutoEncoderTopK":
        return {"gate": "topk", "k": r.need("k")}, {}
    k = {"k": r.need("k")} if r.has("k") or "k" in r.config else {}
    return {"gate": "threshold"} | k, {"threshold": threshold}


def read_dictionary(r, _):
    """The classes of dictionary_learning, but for those that read_matrices knows."""
    r.config = r.config.get("trainer", r.config)
    dict_class = r.config.get("dict_class", "")
    if "trainer_class" in r.config or dict_class:
        if dict_class and dict_class not in CLASSES:
            r.refuse(f"dict_class is {dict_class}, for which there is no code here")
    if r.has("encoder.weight", "decoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder_bias"):
        parts = gated(*(r.take(name) for name in ("encoder.weight", "r_mag", "gate_bias", "mag_bias")))
        parts |= {"W_dec": r.take("decoder.weight").T, "b_dec": r.take("decoder_bias")}
        return parts, {"gate": "threshold", "source": "dictionary_learning, GatedAutoEncoder"}
    if not r.has("encoder.weight", "encoder.bias", "decoder.weight"):
        return None
    if {"pages", "features"} & r.config.keys():
        r.refuse("is an SAE of FLUX or of an image encoder (config with pages); that is no UNet of Stable Diffusion")
    parts = {"encoder.weight": r.take("encoder.weight"), "encoder.bias": r.take("encoder.bias"),
             "W_dec": r.take("decoder.weight").T}
    if r.has("b_dec"):
        if not parts["encoder.bias"].any() and r.has("k") and int(r.tensors["k"]) == len(parts["W_dec"]):
            r.refuse("has no encoder bias and a k of all features: a tool lost the latent_bias of an SAE of "
                     "sdxl-unbox; convert the original state_dict.pth")
        fields, threshold = batch_gate(r, dict_class)
        name = dict_class or "AutoEncoderTopK or BatchTopKSAE"
        return parts | threshold | {"b_dec": r.take("b_dec")}, fields | {"source": f"dictionary_learning, {name}"}
    if r.has("bias"):                           # its loader scales rows to norm 1, so that codes can be compared
        parts |= {"b_dec": r.take("bias")}
        if not torch.allclose(parts["W_dec"].norm(dim=1), torch.ones(())):
            parts = unit_rows(parts)
        return parts, {"gate": "relu", "source": "dictionary_learning, AutoEncoder"}
    if r.has("decoder.bias"):
        return parts | {"b_dec": r.take("decoder.bias")}, {"gate": "relu", "centre": False,
                                                           "source": "dictionary_learning, AutoEncoderNew"}
    r.refuse("has no bias of the decoder by any name that is known here")


def read_matrices(r, _):
    """Files with W_enc (D, F): SAELens, two classes of dictionary_learning, Revelio."""
    if not r.has("W_enc", "W_dec", "b_dec"):
        return None
    if {"architecture", "d_sae", "sae_lens_version", "apply_b_dec_to_input"} & r.config.keys() \
            and "num_sampling_steps" not in r.config:
        return read_saelens(r)
    if not r.has("b_enc"):
        r.refuse("has W_enc and no b_enc; put its config beside it")
    parts = {"encoder.weight": r.take("W_enc").T, "encoder.bias": r.take("b_enc"), "W_dec": r.take("W_dec"),
             "b_dec": r.take("b_dec")}
    if r.has("group_sizes"):
        fields, threshold = batch_gate(r)
        return parts | threshold, fields | {"source": "dictionary_learning, MatryoshkaBatchTopKSAE"}
    if r.config.get("dict_class") == "JumpReluAutoEncoder":
        return parts | {"threshold": r.take("threshold")}, {"gate": "threshold", "centre": False,
                                                            "source": "dictionary_learning, JumpReluAutoEncoder"}
    if "b_dec_init_method" in r.config or "num_sampling_steps" in r.config:
        t = r.config.get("timestep")
        return parts, {"gate": "signed topk", "k": r.need("k"), "timesteps": [t] if type(t) is int else "all",
                       "source": "Revelio, trained on means over all positions"}
    r.refuse("may be of SAELens, dictionary_learning or Revelio, which use the same names in other ways; put its "
             "config (cfg.json or config.json) beside it")


def read_saelens(r):
    """The config decides how the same four tensors are used."""
    c = r.config
    kind = c.get("architecture", "standard")
    function = c.get("activation_fn_str") or c.get("activation_fn") or "relu"
    norms = {"none": "none", None: "none", "layer_norm": "unit", "constant_norm_rescale": "length"}
    for key, value, known in (
            ("architecture", kind, ("standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")),
            ("activation_fn", function, ("relu", "topk")),
            ("normalize_activations", c.get("normalize_activations"), norms),
            ("reshape_activations", c.get("reshape_activations"), ("none", None)),
            ("finetuning_scaling_factor", c.get("finetuning_scaling_factor"), (False, None)),
            ("use_error_term", c.get("use_error_term"), (False, None))):
        if value not in known:
            r.refuse(f"{key} is {value}, for which there is no code here")
    used = {"architecture", "d_in", "d_sae", "k", "activation_fn_str", "activation_fn", "activation_fn_kwargs",
            "normalize_activations", "reshape_activations", "finetuning_scaling_factor", "use_error_term",
            "apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "noise_scale"}
    left = harmless(c, used, r.path)
    weight = r.take("W_enc").T
    if kind == "gated":
        parts = gated(weight, r.take("r_mag"), r.take("b_gate"), r.take("b_mag"))
        r.take("b_enc")
        fields = {"gate": "threshold"}
    else:
        parts, threshold = {"encoder.weight": weight, "encoder.bias": r.take("b_enc")}, r.take("threshold")
        if r.has("log_threshold"):              # a checkpoint of the training
            threshold = r.take("log_threshold").exp()
        if threshold is not None:
            parts, fields = parts | {"threshold": threshold}, {"gate": "threshold"}
        elif kind == "jumprelu":
            r.refuse("is a jumprelu SAE and has no threshold")
        elif kind != "standard" or function == "topk":
            c = c | {"k": c.get("k") or (c.get("activation_fn_kwargs") or {}).get("k")}
            r.config = c
            fields = {"gate": "topk", "k": r.need("k")}
        else:
            fields = {"gate": "relu"}
    parts |= {"W_dec": r.take("W_dec"), "b_dec": r.take("b_dec")}
    if c.get("rescale_acts_by_decoder_norm"):
        parts = unit_rows(parts)
    return parts, fields | {"norm": norms[c.get("normalize_activations")], "source": f"SAELens, {kind}", "left": left,
                            "centre": c.get("apply_b_dec_to_input", True)}


def read_overcomplete(r, _):
    """relu(W x + b), not centred; the rows of the dictionary are normalised, a batch norm is folded into W and b."""
    if not r.has("dictionary._weights", "encoder.final_block.0.weight", "encoder.final_block.0.bias"):
        return None
    weight, bias = r.take("encoder.final_block.0.weight"), r.take("encoder.final_block.0.bias")
    norm = [r.take(f"encoder.final_block.1.{name}") for name in ("running_mean", "running_var", "weight", "bias")]
    if norm[0] is not None:
        scale = norm[2] / (norm[1] + 1e-5).sqrt()
        weight, bias = weight * scale[:, None], (bias - norm[0]) * scale + norm[3]
        r.take("encoder.final_block.1.num_batches_tracked")
    elif norm[2] is not None:
        r.refuse("normalises the features of its encoder (layer norm), for which there is no code here")
    rows = r.take("dictionary._weights")
    rows = rows / (rows.norm(dim=1, keepdim=True) + 1e-8) * r.take("dictionary.multiplier", torch.zeros(())).exp()
    parts = {"encoder.weight": weight, "encoder.bias": bias, "W_dec": rows, "b_dec": torch.zeros(rows.shape[1])}
    fields, thresholds = {"gate": "relu"}, r.take("thresholds")
    if thresholds is not None:
        parts, fields = parts | {"threshold": thresholds.exp()}, {"gate": "threshold"}
    elif k := r.config.get("top_k") or r.config.get("k"):
        fields = {"gate": "topk", "k": int(k)}
    return parts, fields | {"centre": False, "source": "overcomplete"}
