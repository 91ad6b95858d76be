"""`allosr2 info` against counts of the parts as diffusers loads them."""

from __future__ import annotations

import json
import shutil

from allosr2.cli import main


def test_table(tiny_model, tiny_base, tmp_path, capsys):
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from safetensors.torch import load_file

    vae = AutoencoderKL.from_pretrained(tiny_base, subfolder="vae")
    transformer = FluxTransformer2DModel.from_pretrained(tiny_base, subfolder="transformer")
    adapters = load_file(tiny_model / "pytorch_lora_weights.safetensors")
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "allosr2.json").read_text())
    config["provenance"] = {"training": {"run.steps": 12}, "machine": "riscv"}
    (folder / "allosr2.json").write_text(json.dumps(config))

    assert main(["info", str(folder)]) == 0
    shown = capsys.readouterr().out

    def row(name: str) -> str:
        (line,) = [line for line in shown.splitlines() if line.startswith(f"│ {name} ")]
        return line.split("│")[2].strip()

    for name, part in [
        ("VAE encoder", vae.encoder),
        ("VAE decoder", vae.decoder),
        ("transformer", transformer),
    ]:
        count = sum(parameter.numel() for parameter in part.parameters())
        assert row(name) == f"{count:,} parameters"
    count = sum(tensor.numel() for tensor in adapters.values())
    assert row("adapters") == f"{count:,} parameters, rank 4"
    assert row("t*") == "0.4000"
    assert row("scale") == "x4"
    assert row("preset") == "mild"
    assert row("base") == str(tiny_base)
    assert row("training.run.steps") == "12"
    assert row("machine") == "riscv"
