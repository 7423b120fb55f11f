"""A custom node pack for the test server alone: what core has no nodes for, and a T5 that fits into a test.

ComfyUI knows a T5-XXL by the shape of one weight in its last layer and builds the full size. A file made by ``tests.comfy.tiny`` names
that weight in a key of its own; here it is given the shape, without memory, and the sizes are read from the weights that are there.
"""

import os

import comfy.sd
import folder_paths
import torch
from safetensors.torch import save_file

MARK = "stands for:"
XXL = (10240, 4096)
core_loads = comfy.sd.load_text_encoder_state_dicts


def load_tiny(state_dicts, *args, model_options=None, **options):
    weights = state_dicts[0]
    model_options = dict(model_options or {})
    for key in [key for key in weights if key.startswith(MARK)]:
        del weights[key]
        weights[key.removeprefix(MARK)] = torch.zeros(1, 1).expand(XXL)
        rows, width = weights["shared.weight"].shape
        bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        query = "encoder.block.0.layer.0.SelfAttention.q.weight"
        feed = next(
            tensor for name, tensor in weights.items() if ".0.layer.1.DenseReluDense.wi" in name and tensor.ndim == 2
        )
        heads = weights[bias].shape[1]
        sizes = {"d_model": width, "d_ff": feed.shape[0], "num_heads": heads, "vocab_size": rows}
        sizes |= {"d_kv": weights[query].shape[0] // heads, "num_layers": 2}
        model_options |= {"t5xxl_model_config": sizes, "_model_config": sizes}
    return core_loads(state_dicts, *args, model_options=model_options, **options)


comfy.sd.load_text_encoder_state_dicts = load_tiny


class WriteConditioning:
    RETURN_TYPES = ()
    FUNCTION = "write"
    OUTPUT_NODE = True
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",), "name": ("STRING", {"default": "said"})}}

    def write(self, conditioning, name):
        tensors = {}
        for number, (embedding, extra) in enumerate(conditioning):
            tensors |= {
                f"{number}.embedding": embedding.contiguous(),
                f"{number}.mask": extra["attention_mask"].contiguous(),
            }
        folder = folder_paths.get_output_directory()
        os.makedirs(folder, exist_ok=True)
        save_file(tensors, os.path.join(folder, f"{name}.safetensors"))
        return {"ui": {"text": [name]}}


class Full:
    """All values the same, whatever they are: "nan", "inf", "-1e30"."""

    FUNCTION = "fill"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"shape": ("STRING", {}), "value": ("STRING", {})}}

    def tensor(self, shape, value):
        return torch.full([int(side) for side in shape.split("x")], float(value))


class Images(Full):
    RETURN_TYPES = ("IMAGE",)

    def fill(self, shape, value):
        return (self.tensor(shape, value),)


class Latents(Full):
    RETURN_TYPES = ("LATENT",)

    def fill(self, shape, value):
        return ({"samples": self.tensor(shape, value)},)


class Sigmas(Full):
    """Evenly falling from ``value`` to 0 in ``shape`` steps."""

    RETURN_TYPES = ("SIGMAS",)

    def fill(self, shape, value):
        return (torch.linspace(float(value), 0, int(shape) + 1),)


NODE_CLASS_MAPPINGS = {
    "TestWriteConditioning": WriteConditioning,
    "TestImages": Images,
    "TestLatents": Latents,
    "TestSigmas": Sigmas,
}
