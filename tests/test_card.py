"""The model card says what `allosr2.json` says."""

from __future__ import annotations

import json

import pytest

from allosr2.card import model_card


@pytest.mark.parametrize(("guidance", "shown"), [(None, "none"), (1.0, "1.0")])
def test_card_shows_every_setting(guidance, shown):
    settings = {
        "base": "black-forest-labs/FLUX.1-dev",
        "t_star": 0.438,
        "scale": 4,
        "preset": "mild",
        "prompt_length": 0,
        "guidance": guidance,
        "provenance": {"training": {"run.steps": 7}},
        "format_version": 1,
    }
    card = model_card(settings)
    front_matter = card.split("---\n")[1]
    assert "pipeline_tag: image-to-image\n" in front_matter
    assert f"| guidance | {shown} |" in card
    assert "| t* (Eq. 6) | 0.438 |" in card
    assert "Allo{SR}²" in card
    provenance = card.split("```json\n")[1].split("\n```")[0]
    assert json.loads(provenance) == settings["provenance"]
