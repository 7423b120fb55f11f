"""Run by ComfyUI's own Python, without its server: ``python inside.py COMFYUI BASE PACK``. Prints what became of our MODELs as JSON."""

import asyncio
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

COMFYUI, BASE, PACK = map(Path, sys.argv[1:])
os.chdir(COMFYUI)
sys.path.insert(0, str(COMFYUI))
sys.argv = [sys.argv[0], "--cpu", "--base-directory", str(BASE)]

import comfy.options  # noqa: E402 - ComfyUI reads the arguments at its first import

comfy.options.enable_args_parsing()
importlib.import_module("utils.extra_config")  # before another package called utils

import comfy.model_management as management  # noqa: E402
import server  # noqa: E402
import torch  # noqa: E402
from aiohttp import web  # noqa: E402

server.PromptServer.instance = SimpleNamespace(routes=web.RouteTableDef())

spec = importlib.util.spec_from_file_location("pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}
running, memory, host = (importlib.import_module(f"pack.nodes.{name}") for name in ("running", "memory", "host"))
BUDGETS = (1, 3_000_000, 8_000_000, 1 << 30)


def load(precision="auto", weights="auto"):
    return nodes["MagiLoadModel"].execute("magi-nano", precision, "auto", weights).result[0]


def velocity(model):
    dit = model.model.dit
    x = torch.randn(1, 16, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    caption = dit.null_caption[None, :50].float()
    given = {"dropped": False, "chunk_index": [0], "kv_range": [(0, 96)]}
    return dit(x, torch.full((1, 1), 0.5), caption, torch.ones(1, 50), **given)


def partly(precision):
    """A MODEL loaded by parts of some sizes, then whole, gives what one does that ComfyUI does not manage."""
    expected = velocity(load(precision, "resident"))
    model, seen = load(precision), []
    for budget in BUDGETS:
        model.partially_load(model.load_device, budget)
        same = torch.equal(velocity(model), expected)
        seen.append({"loaded": model.loaded_size(), "lowvram": model.model.model_lowvram, "same": same})
        if budget == BUDGETS[2]:
            seen[-1]["freed"] = model.partially_unload(model.offload_device, 1_000_000)
            seen[-1]["same"] &= torch.equal(velocity(model), expected)
        model.detach()
    return {"size": model.model_size(), "steps": seen, "after": torch.equal(velocity(model), expected)}


def placement():
    """What ComfyUI takes to a device of little room: a device without memory stands for it."""
    model = load()
    model.partially_load(torch.device("meta"), 3_000_000)
    linear = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    others = {id(p) for p in model.model.parameters()} - {id(p) for m in linear for p in m.parameters()}
    return {
        "layers there": sum(m.weight.is_meta for m in linear),
        "layers": len(linear),
        "others there": all(p.is_meta for p in model.model.parameters() if id(p) in others),
    }


def asked_for(height, width):
    """Bytes that are to be free beside the weights, as ComfyUI was told."""
    model, told = load(), []
    use = running.use_of(model, model.model.config.sampling, height, width)
    real = management.load_models_gpu
    management.load_models_gpu = lambda models, memory_required, **options: told.append(int(memory_required))
    running.load(model, use)
    management.load_models_gpu = real
    return {"told": told[0], "kv_cache": running.plan_memory(use).kv_cache}


def out_of_memory():
    model = load()
    use = running.use_of(model, model.model.config.sampling, 256, 256)
    try:
        with memory.out_of_memory(lambda: running.lighter(use)):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    except ValueError as error:
        return str(error)


def unloaded():
    """After ComfyUI let go of everything a MODEL works as before, and nothing of it is kept."""
    model = load()
    expected = velocity(model)
    management.load_models_gpu([model])
    listed = len(management.current_loaded_models)
    management.unload_all_models()
    management.soft_empty_cache()
    return {"listed": listed, "same": torch.equal(velocity(model), expected)}


def elsewhere():
    """What becomes of a folder that is named as if it lay among the models."""
    (BASE / "models" / "magi" / "mine").mkdir(parents=True)
    try:
        host.chosen(None, f"magi/{PACK}")
    except ValueError as error:
        return {"mine": host.chosen(None, "magi/mine").name, "elsewhere": str(error)}


with torch.inference_mode():
    report = {
        "named": elsewhere(),
        "partly": {precision: partly(precision) for precision in ("auto", "bf16")},
        "sizes": {w: load("auto", w).model_size() for w in ("auto", "resident", "streamed")}
        | {"fp8": load("fp8").model_size(), "bf16": load("bf16").model_size()},
        "small": asked_for(64, 64),
        "large": asked_for(256, 256),
        "out of memory": out_of_memory(),
        "unloaded": unloaded(),
        "placement": placement(),
    }
sys.stdout.write("REPORT " + json.dumps(report) + "\n")
