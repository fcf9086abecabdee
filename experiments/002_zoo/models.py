"""The models of the zoo: how each is built, with random weights, and which example inputs it gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import vision_ops
from torch import Tensor, nn

vision_ops.allow_import()  # timm and transformers import torchvision too

import timm  # noqa: E402
import torchvision.models  # noqa: E402
import transformers  # noqa: E402

Built = tuple[nn.Module, tuple[Tensor, ...] | dict[str, Tensor]]

TIMM_NAMES = """
    beit_base_patch16_224 botnet26t_256 halonet26t gcresnext26ts cait_xxs24_224 coat_lite_tiny convit_tiny
    convmixer_768_32 convnextv2_atto cpubone_nano crossvit_9_240 cs3darknet_focus_s cspresnet50 davit_tiny
    deit_tiny_patch16_224 densenetblur121d dla34 dpn68 edgenext_xx_small efficientformer_l1 efficientformerv2_s0
    efficientnet_b0 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf
    gcvit_xxtiny ghostnet_100 hardcorenas_a hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto
    inception_resnet_v2 inception_v4 lcnetv2_small levit_128s lowformer_b0 mambaout_femto coatnet_nano_rw_224
    maxvit_nano_rw_256 poolformer_s12 mixer_s32_224 gmlp_ti16_224 resmlp_12_224 mobilenetv3_small_100
    mobilenetv4_conv_small mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small eca_nfnet_l0 pit_ti_224
    pvt_v2_b0 rdnet_tiny regnety_002 repghostnet_050 repvit_m0_9 repvgg_a0 mobileone_s0 res2net50_26w_4s resnest14d
    ecaresnet26t resnetv2_18 rexnet_100 selecsls42b legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050
    swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m
    twins_svt_small vgg11_bn visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224
    vitamin_small_224 volo_d1_224 ese_vovnet19b_dw legacy_xception xcit_nano_12_p16_224
"""
TIMM = TIMM_NAMES.split()

VISION_SIZES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}
"""Side of the square input of a torchvision model where it is not 64; Swin gets 224."""

WIDTH = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}
MLP = {"intermediate_size": 128}
IMAGE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SPEECH = {
    "conv_dim": (32, 32),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
SEQ2SEQ = {
    "vocab_size": 96,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
GPT = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4}
GROUPED = {**WIDTH, **MLP, "num_key_value_heads": 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 64, 128]}
CLASSES: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert": ("BertForSequenceClassification", WIDTH | MLP, "ids"),
    "roberta": ("RobertaForSequenceClassification", WIDTH | MLP, "ids"),
    "albert": ("AlbertForSequenceClassification", WIDTH | MLP | {"embedding_size": 32}, "ids"),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"vocab_size": 96, "dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4},
        "ids",
    ),
    "electra": ("ElectraForSequenceClassification", WIDTH | MLP | {"embedding_size": 32}, "ids"),
    "mpnet": ("MPNetForSequenceClassification", WIDTH | MLP, "ids"),
    "deberta_v2": ("DebertaV2ForSequenceClassification", WIDTH | MLP, "ids"),
    "camembert": ("CamembertForSequenceClassification", WIDTH | MLP, "ids"),
    "modernbert": ("ModernBertForSequenceClassification", WIDTH | MLP | {"pad_token_id": 0}, "ids"),
    "fnet": ("FNetForSequenceClassification", {**WIDTH, **MLP, "num_attention_heads": None}, "ids"),
    "squeezebert": ("SqueezeBertForSequenceClassification", WIDTH | MLP | {"embedding_size": 64}, "ids"),
    "gpt2": ("GPT2LMHeadModel", GPT, "ids"),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {"vocab_size": 96, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
        "ids",
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", WIDTH | MLP, "ids"),
    "gptj": ("GPTJForCausalLM", GPT | {"rotary_dim": 8}, "ids"),
    "bloom": ("BloomForCausalLM", {"vocab_size": 96, "hidden_size": 64, "n_layer": 2, "n_head": 4}, "ids"),
    "opt": ("OPTForCausalLM", {**WIDTH, "ffn_dim": 128, "word_embed_proj_dim": 64}, "ids"),
    "llama": ("LlamaForCausalLM", GROUPED, "ids"),
    "mistral": ("MistralForCausalLM", GROUPED, "ids"),
    "qwen2": ("Qwen2ForCausalLM", GROUPED, "ids"),
    "qwen3": ("Qwen3ForCausalLM", GROUPED | {"head_dim": 16}, "ids"),
    "gemma": ("GemmaForCausalLM", GROUPED | {"head_dim": 16}, "ids"),
    "gemma2": ("Gemma2ForCausalLM", GROUPED | {"head_dim": 16}, "ids"),
    "phi": ("PhiForCausalLM", WIDTH | MLP, "ids"),
    "phi3": ("Phi3ForCausalLM", GROUPED | {"pad_token_id": 0}, "ids"),
    "stablelm": ("StableLmForCausalLM", GROUPED, "ids"),
    "falcon": ("FalconForCausalLM", WIDTH, "ids"),
    "mixtral": ("MixtralForCausalLM", GROUPED | EXPERTS, "ids"),
    "mamba": (
        "MambaForCausalLM",
        {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
        "ids",
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 96, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
        "seq2seq",
    ),
    "t5_encoder": (
        "T5EncoderModel",
        {"vocab_size": 96, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
        "ids",
    ),
    "bart": ("BartForConditionalGeneration", SEQ2SEQ, "seq2seq"),
    "marian": ("MarianMTModel", SEQ2SEQ | {"pad_token_id": 0}, "seq2seq"),
    "vit": ("ViTForImageClassification", IMAGE | {"image_size": 32, "patch_size": 8}, "image"),
    "deit": ("DeiTForImageClassification", IMAGE | {"image_size": 32, "patch_size": 8}, "image"),
    "beit": ("BeitForImageClassification", IMAGE | {"image_size": 32, "patch_size": 8}, "image"),
    "dinov2": ("Dinov2ForImageClassification", IMAGE | {"image_size": 32, "patch_size": 8}, "image"),
    "swin": (
        "SwinForImageClassification",
        {"image_size": 32, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2},
        "image",
    ),
    "swinv2": (
        "Swinv2ForImageClassification",
        {"image_size": 32, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2},
        "image",
    ),
    "convnext": ("ConvNextForImageClassification", STAGES, "image"),
    "resnet": ("ResNetForImageClassification", STAGES | {"embedding_size": 16}, "image"),
    "segformer": (
        "SegformerForImageClassification",
        STAGES | {"hidden_sizes": [16, 32, 64, 64], "num_attention_heads": [1, 2, 4, 4]},
        "image",
    ),
    "mobilevit": ("MobileViTForImageClassification", {}, "image"),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {}, "image"),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", WIDTH | MLP | SPEECH, "sound"),
    "hubert": ("HubertForSequenceClassification", WIDTH | MLP | SPEECH, "sound"),
    "clip_vision": (
        "CLIPVisionModel",
        IMAGE | {"image_size": 32, "patch_size": 8},
        "image",
    ),
}
"""transformers architecture -> class, keywords of its config, kind of input."""


def names() -> Iterator[tuple[str, str]]:
    """Every (source, name)."""
    yield from (("transformers", name) for name in CLASSES)
    yield from (("torchvision", name) for name in torchvision.models.list_models(module=torchvision.models))
    yield from (("timm", name) for name in TIMM)


def build(source: str, name: str) -> Built:
    """The model in evaluation mode, with random weights, and its example inputs."""
    torch.manual_seed(0)
    model, inputs = BUILDERS[source](name)
    return model.eval(), inputs


def _torchvision(name: str) -> Built:
    side = VISION_SIZES.get(name, 224 if name.startswith("swin") else 64)
    options: dict[str, Any] = {"image_size": side} if name.startswith("vit") else {}
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    options |= {"aux_logits": False} if name == "googlenet" else {}  # heads for training only, as with trained weights
    return torchvision.models.get_model(name, weights=None, **options), (torch.rand(1, 3, side, side),)


def _timm(name: str) -> Built:
    model = timm.create_model(name, pretrained=False)
    side = model.pretrained_cfg["input_size"][-1]
    return model, (torch.rand(1, 3, side, side),)


def _transformers(name: str) -> Built:
    kind, keywords, wants = CLASSES[name]
    model_class = getattr(transformers, kind)
    config = model_class.config_class(**{key: value for key, value in keywords.items() if value is not None})
    config.use_cache = False
    model = model_class(config)
    ids = torch.randint(3, 96, (2, 8))
    if wants == "image":
        side = 32 if hasattr(config, "patch_size") and name != "mobilevit" else 64
        return model, {"pixel_values": torch.rand(1, 3, side, side)}
    if wants == "sound":
        return model, {"input_values": torch.rand(1, 400)}
    return model, {"input_ids": ids} | ({"decoder_input_ids": ids[:, :5]} if wants == "seq2seq" else {})


BUILDERS: dict[str, Callable[[str], Built]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}
