"""The SAE files of other tools: each family as its source defines it, in plain torch, against what convert.py makes.

D 8, F 16, k 2. A definition is a function of h (n, D) -> (pre-activations before the relu, codes, reconstruction).
"""
import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file

from sae import SAE
from tests.seeded import randn
from weights import convert
from weights.load import WeightsError, build, read_json, read_sae_config

D, F, K = 8, 16, 2
H = 0.3 + randn(50, D, seed=1)
W, B, V, C = randn(F, D, seed=2), 0.3 * randn(F, seed=3), randn(F, D, seed=4), 0.5 * randn(D, seed=5)
THETA = 0.2 + randn(F, seed=6).abs()
R, G = 0.3 * randn(F, seed=7), 0.5 * randn(F, seed=8)


def topk(pre, k=K):
    top = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, top.indices, top.values)


def plain(weight=W, bias=B, rows=V, centre=C, shift=C, gate=lambda pre: topk(pre.relu())):
    """pre = W (h - centre) + b, codes = gate(pre), reconstruction = codes V + shift."""
    def define(h):
        pre = (h - centre) @ weight.T + bias
        codes = gate(pre)
        return pre, codes, codes @ rows + shift
    return define


def layer_norm(h):
    """SAELens undoes it on the way out, by the deviation without eps."""
    mean, std = h.mean(-1, keepdim=True), h.std(-1, keepdim=True)
    pre, codes, out = plain()((h - mean) / (std + 1e-5))
    return pre, codes, out * std + mean


def length(h):
    scale = D ** 0.5 / h.norm(dim=-1, keepdim=True)
    pre, codes, out = plain()(h * scale)
    return pre, codes, out / scale


def gated(h):
    """relu(e^r u + b_mag) where u + b_gate > 0."""
    u = (h - C) @ W.T
    pre = R.exp() * u + B
    codes = pre.relu() * (u + G > 0)
    return pre, codes, codes @ V + C


@dataclass
class RunnerConfig:
    """As Revelio pickles it beside the tensors."""
    d_in: int = D
    k: int = K
    timestep: int = 25
    num_sampling_steps: int = 25
    b_dec_init_method: str = "mean"
    dtype: torch.dtype = torch.float32


NORMS, ROWS = V.norm(dim=1), V / V.norm(dim=1, keepdim=True)
THRESHOLD = torch.tensor(0.7)
relu = lambda pre: pre.relu()
above = lambda theta: lambda pre: pre.relu() * (pre > theta)
A = {"encoder.weight": W, "encoder.bias": B, "W_dec": V, "b_dec": C}
OPENAI = {"state_dict": {"encoder.weight": W, "decoder.weight": V.T, "pre_bias": C, "latent_bias": B,
                         "stats_last_nonzero": torch.zeros(F, dtype=torch.int64)}}
CODES = {"encoder.weight": W, "encoder.bias": B, "decoder.weight": V.T}
TOPK = CODES | {"b_dec": C, "k": torch.tensor(K)}
MATRICES = {"W_enc": W.T, "b_enc": B, "W_dec": V, "b_dec": C}
LENS = {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"hook_name": "blocks.5", "sae_lens_version": "6.0.0"}}
CFG = {"expansion_factor": 2, "normalize_decoder": True, "num_latents": 0, "k": K, "batch_topk": True,
       "sample_topk": False, "input_unit_norm": False, "multi_topk": False, "d_in": D,
       "time_embedding_type": "positional", "time_embedding_dim": 0, "num_timesteps": 1000, "cond_encoder": False}
UNBOX = {"n_dirs_local": F, "d_model": D, "k": K, "auxk": 256, "dead_steps_threshold": 2441}
OVERCOMPLETE = {"encoder.final_block.0.weight": W, "encoder.final_block.0.bias": B, "dictionary._weights": V,
                "dictionary.multiplier": torch.tensor(0.5)}


def trained(name):
    return {"trainer": {"trainer_class": "Trainer", "dict_class": name, "activation_dim": D, "dict_size": F, "k": K,
                        "threshold_beta": 0.999, "lr": 1e-4}, "buffer": {"ctx_len": 128}}


def learned(name, tensors, definition, **fields):
    """A case of dictionary_learning."""
    return "ae.pt", tensors, "config.json", trained(name), definition, fields


def lens(definition, tensors=MATRICES, fields={}, **config):
    """A case of SAELens."""
    return "sae_weights.safetensors", tensors, "cfg.json", LENS | config, definition, fields


LOUD = ROWS * torch.tensor(0.5).exp()
FAMILIES = {    # name: (file, tensors, config's name, config, definition, fields of our cfg.json)
    "SAeUron": ("sae.safetensors", A, "cfg.json", CFG, plain(), {"gate": "topk", "k": K, "reads": "output"}),
    "SAeUron, unit norm": ("sae.safetensors", A, "cfg.json", CFG | {"input_unit_norm": True}, layer_norm,
                           {"norm": "unit"}),
    "sparsify": ("sae.safetensors", A, "cfg.json", {
        "activation": "topk", "expansion_factor": 2, "normalize_decoder": True, "num_latents": F, "k": K, "d_in": D,
        "multi_topk": False, "transcode": False, "skip_connection": False}, plain(), {}),
    "our own, with one threshold": ("sae.safetensors", A, "cfg.json", {
        "d_in": D, "num_latents": F, "k": K, "gate": "threshold", "threshold": 0.7}, plain(gate=above(0.7)), {}),
    "sdxl-unbox": ("state_dict.pth", OPENAI, "config.json", UNBOX, plain(), {"reads": "update", "gate": "topk"}),
    "SAEmnesia": ("state_dict.pth", OPENAI, "cfg.json", {"d_in": D, "n_dirs_local": F, "k": K}, plain(),
                  {"reads": "output"}),
    "Revelio": ("final_k_sparse_autoencoder_mid.pt", {"cfg": RunnerConfig(), "state_dict": MATRICES}, None, None,
                plain(gate=topk), {"timesteps": [25], "gate": "signed topk"}),
    "names with a beginning": learned("AutoEncoderTopK", {f"_orig_mod.{k}": v for k, v in TOPK.items()}, plain()),
    "AutoEncoderTopK": learned("AutoEncoderTopK", TOPK | {"threshold": torch.tensor(0.7)}, plain(), gate="topk"),
    "BatchTopKSAE": learned("BatchTopKSAE", TOPK | {"threshold": THRESHOLD}, plain(gate=above(THRESHOLD)),
                            gate="threshold", k=K),
    "BatchTopKSAE without a threshold": learned("BatchTopKSAE", TOPK | {"threshold": torch.tensor(-1.0)}, plain()),
    "AutoEncoder": learned("AutoEncoder", CODES | {"bias": C},
                           plain(W * NORMS[:, None], B * NORMS, ROWS, gate=relu), gate="relu"),
    "AutoEncoderNew": learned("AutoEncoderNew", CODES | {"decoder.bias": C}, plain(centre=0, gate=relu), centre=False),
    "JumpReluAutoEncoder": learned("JumpReluAutoEncoder", MATRICES | {"threshold": THETA},
                                   plain(centre=0, gate=above(THETA)), centre=False, gate="threshold"),
    "MatryoshkaBatchTopKSAE": learned("MatryoshkaBatchTopKSAE", MATRICES | {
        "k": torch.tensor(K), "threshold": THRESHOLD, "group_sizes": torch.tensor([4, 12])},
        plain(gate=above(THRESHOLD)), centre=True),
    "GatedAutoEncoder": learned("GatedAutoEncoder", {
        "encoder.weight": W, "decoder_bias": C, "r_mag": R, "gate_bias": G, "mag_bias": B, "decoder.weight": V.T},
        gated),
    "SAELens standard": lens(plain(gate=relu), fields={"gate": "relu", "norm": "none"}, architecture="standard"),
    "SAELens topk, not centred": lens(plain(centre=0), architecture="topk", k=K, apply_b_dec_to_input=False),
    "SAELens topk, rescaled": lens(plain(W * NORMS[:, None], B * NORMS, ROWS), architecture="topk", k=K,
                                   rescale_acts_by_decoder_norm=True),
    "SAELens jumprelu": lens(plain(gate=above(THETA)), MATRICES | {"threshold": THETA}, architecture="jumprelu"),
    "SAELens layer norm": lens(layer_norm, architecture="topk", k=K, normalize_activations="layer_norm"),
    "SAELens constant norm": lens(length, architecture="topk", k=K, normalize_activations="constant_norm_rescale"),
    "SAELens 4": lens(plain(), activation_fn_str="topk", activation_fn_kwargs={"k": K}, hook_layer=5, prepend_bos=True),
    "overcomplete": ("sae.pt", OVERCOMPLETE, None, None, plain(rows=LOUD, centre=0, shift=0, gate=relu), {}),
    "overcomplete, jump": ("sae.pt", OVERCOMPLETE | {"thresholds": THETA.log()}, None, None,
                           plain(rows=LOUD, centre=0, shift=0, gate=above(THETA)), {}),
    "overcomplete, top-k": ("sae.pt", OVERCOMPLETE, "config.json", {"top_k": K}, plain(rows=LOUD, centre=0, shift=0),
                            {"gate": "topk"}),
}


def written(folder, file, tensors, config_name=None, config=None):
    folder.mkdir()
    if file.endswith(".safetensors"):
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / file)
    else:
        torch.save(tensors, folder / file)
    if config_name:
        (folder / config_name).write_text(json.dumps(config))
    return folder


def loaded(folder):
    fields = read_sae_config(read_json(folder / "cfg.json"), "cfg.json")
    return build(SAE, fields, folder / "cfg.json", folder / "sae.safetensors")


def agree(sae, definition, h=H):
    pre, codes, out = definition(h)
    for ours, theirs in ((sae.linear(h), pre), (sae.encode(h), codes), (sae.reconstruct(h), out)):
        assert torch.allclose(ours, theirs, atol=2e-5), (ours - theirs).abs().max()
    assert (codes != 0).any() and (codes == 0).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_what_its_source_defines(name, tmp_path):
    file, tensors, config_name, config, definition, fields = FAMILIES[name]
    source = written(tmp_path / "in", file, tensors, config_name, config)
    whole = source if config_name or file.split(".")[0] in convert.STEMS else source / file
    convert.convert(whole, tmp_path / "sae/unet.up_blocks.1.attentions.1")
    if tensors is A:                            # this family is read as it is, too
        agree(loaded(source), definition)
    made = json.loads((tmp_path / "sae/unet.up_blocks.1.attentions.1/cfg.json").read_text())
    assert {key: made[key] for key in fields} == fields
    sae = loaded(tmp_path / "sae/unet.up_blocks.1.attentions.1")
    agree(sae, definition)
    convert.convert(tmp_path / "sae/unet.up_blocks.1.attentions.1", tmp_path / "again")         # of our own form
    again = loaded(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), sae.state_dict().values()))
    assert torch.equal(again.encode(H), sae.encode(H)) and torch.equal(again.reconstruct(H), sae.reconstruct(H))


def sparse(says, tensors=A, **config):
    """A refused case of SAeUron and sparsify."""
    return "sae.safetensors", tensors, "cfg.json", CFG | config, says


REFUSED = {     # name: (file, tensors, config's name, config, what the line says)
    "groupmax": sparse("activation is groupmax", activation="groupmax"),
    "a transcoder": sparse("transcode is True", transcode=True),
    "a skip connection in the config": sparse("skip_connection is True", skip_connection=True),
    "a time embedding in the config": sparse("time_embedding_dim is 64", time_embedding_dim=64),
    "a conditional encoder": sparse("cond_encoder is True", cond_encoder=True),
    "an unknown field": sparse("the field rotate_output", rotate_output="yes"),
    "a skip connection": sparse("has a tensor 'W_skip'", A | {"W_skip": torch.eye(D)}),
    "a text encoder's by its hook point": sparse("of a text encoder", hookpoint="text_encoder.text_model.layers.9"),
    "shapes that do not fit": sparse("do not fit together", A | {"b_dec": B}),
    "NaN": sparse("b_dec holds NaN", A | {"b_dec": C * float("nan")}),
    "a text encoder's": ("state_dict.pth", OPENAI, "config.json", UNBOX | {"auxk_coef": 0.03}, "of a text encoder"),
    "FiLM": lens("has a tensor 'time_mlp.0.weight'", MATRICES | {"time_mlp.0.weight": V}, architecture="standard")[:-1],
    "a GeLU": lens("activation_fn_str is gelu", activation_fn_str="gelu")[:-1],
    "a gate of SAELens": lens("architecture is gated", architecture="gated")[:-1],
    "a scale that was not kept": lens("normalize_activations is expected_average_only_in", architecture="standard",
                                      normalize_activations="expected_average_only_in")[:-1],
    "lost latent_bias": learned("AutoEncoderTopK", TOPK | {"encoder.bias": torch.zeros(F), "k": torch.tensor(F)},
                                "lost the latent_bias")[:-1],
    "layer norm": ("sae.pt", OVERCOMPLETE | {"encoder.final_block.1.weight": R}, None, None, "final_block.1.weight"),
    "W_enc without a config": ("sae.pt", MATRICES, None, None, "put its config"),
    "k nowhere": ("state_dict.pth", OPENAI, None, None, "says nowhere what k is"),
    "unknown names": ("sae.pt", {"W_dec": V, "U": W}, None, None, "its tensors are U, W_dec"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_another_sae_is_refused_by_name(name, tmp_path, capsys):
    """The first six also by the loader, for a file of SAeUron's family need not be converted."""
    file, tensors, config_name, config, says = REFUSED[name]
    source = written(tmp_path / "in", file, tensors, config_name, config)
    assert convert.main([str(source if config_name else source / file), str(tmp_path / "out/x")]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1, error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
    if name in [*REFUSED][:6]:
        with pytest.raises(WeightsError, match=says.split()[-1]):
            read_sae_config(config, "cfg.json")


def test_flags_say_what_a_file_does_not(tmp_path, capsys):
    source = written(tmp_path / "in", "state_dict.pth", OPENAI, "config.json", UNBOX)
    (source / "labels.json").write_text('{"3": "cat"}')
    assert convert.main([str(source), str(tmp_path / "out"), "--reads", "output", "--timesteps", "981,501"]) == 0
    assert "reads the output at time steps [981, 501]" in (said := capsys.readouterr().out)
    assert "fields that change nothing here: auxk, dead_steps_threshold" in said
    fields = json.loads((tmp_path / "out/cfg.json").read_text())
    assert fields["timesteps"] == [981, 501] and fields["reads"] == "output"
    assert json.loads((tmp_path / "out/labels.json").read_text()) == {"3": "cat"}
