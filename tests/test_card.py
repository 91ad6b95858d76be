"""The model card says what `allosr2.json` says."""

from __future__ import annotations

import json

import pytest
import yaml

from allosr2.card import model_card


@pytest.mark.parametrize(("guidance", "shown"), [(None, "none"), (1.0, "1.0")])
def test_card_shows_every_setting(guidance, shown):
    settings = {
        "base": "base",
        "origin": "black-forest-labs/FLUX.1-dev",
        "t_star": 0.438,
        "scale": 4,
        "preset": "mild",
        "prompt_length": 0,
        "guidance": guidance,
        "provenance": {
            "training": {"run.steps": 7, "run.recipe": "flux-dev-lean"},
            "data": {"photographs": 31, "sources": ["lsdir", "ffhq:10000"], "drawn": 0.2},
        },
        "metrics": [
            {"dataset": "RealSR", "metric": "PSNR-Y", "value": 25.5, "by": "pyiqa 0.1.16"},
        ],
        "format_version": 1,
    }
    card = model_card(settings)
    front_matter = card.split("---\n")[1]
    assert "pipeline_tag: image-to-image\n" in front_matter
    metadata = yaml.safe_load(front_matter)
    assert metadata["base_model"] == "black-forest-labs/FLUX.1-dev"
    assert metadata["license"] == "other"
    assert metadata["license_name"] == "flux-1-dev-non-commercial-license"
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"]["name"] == "RealSR"
    assert result["metrics"] == [{"type": "PSNR-Y", "value": 25.5}]
    assert "NON-COMMERCIAL use only" in card
    assert "| RealSR | PSNR-Y | 25.5 | pyiqa 0.1.16 |" in card
    assert "| recipe | flux-dev-lean |" in card
    assert "31 photographs (`lsdir`, `ffhq:10000`), 20% drawn images" in card
    assert f"| guidance | {shown} |" in card
    assert "| t* (Eq. 6) | 0.438 |" in card
    assert "Allo{SR}²" in card
    provenance = card.split("```json\n")[1].split("\n```")[0]
    assert json.loads(provenance) == settings["provenance"]


def test_a_card_of_a_base_on_this_machine_does_not_say_where_it_lies():
    settings = {
        "base": "/home/somebody/models/FLUX.1-schnell",
        "origin": "FLUX.1-schnell",
        "t_star": 0.4,
        "scale": 4,
        "preset": "mild",
        "prompt_length": 0,
        "guidance": None,
        "provenance": {},
        "metrics": [],
    }
    card = model_card(settings)
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert "somebody" not in card
    assert "base_model" not in metadata
    assert metadata["license"] == "apache-2.0"
    assert "None were recorded." in card
