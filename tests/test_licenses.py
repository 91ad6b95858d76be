"""Which bases may be used commercially, as their owners' pages say."""

import pytest

from allosr2.licenses import describe_license, license_of

TERMS = {
    "black-forest-labs/FLUX.1-dev": "NON-COMMERCIAL",
    "black-forest-labs/FLUX.1-Krea-dev": "NON-COMMERCIAL",
    "black-forest-labs/FLUX.1-schnell": "any use",
    "black-forest-labs/FLUX.2-klein-4B": "any use",
    "black-forest-labs/FLUX.2-klein-base-4B": "any use",
    "black-forest-labs/FLUX.2-klein-9B": "NON-COMMERCIAL",
    "black-forest-labs/FLUX.2-dev": "NON-COMMERCIAL",
    "stabilityai/stable-diffusion-3.5-medium": "one million",
    "Tongyi-MAI/Z-Image": "any use",
    "Tongyi-MAI/Z-Image-Turbo": "any use",
}


@pytest.mark.parametrize("base", sorted(TERMS))
@pytest.mark.parametrize("place", ["{}", "/models/{}/"])
def test_known_bases(base, place):
    known = license_of(place.format(base))
    assert known is not None
    assert TERMS[base] in known.terms
    described = describe_license(base)
    assert known.name in described
    assert known.terms in described
    assert known.link in described


def test_others_are_not_guessed():
    assert license_of("somebody/flux") is None
    assert license_of("base") is None
    assert describe_license("somebody/flux") == "not known here; see where the base came from"


@pytest.mark.parametrize(
    "folder",
    [
        "/cache/models--black-forest-labs--FLUX.1-dev/snapshots/aaaa",
        "models/FLUX.1-dev/",
        "/models/flux.1-dev-bf16",
    ],
)
def test_folders_are_known_by_any_part_of_their_path(folder):
    known = license_of(folder)
    assert known is not None
    assert "NON-COMMERCIAL" in known.terms


@pytest.mark.parametrize(
    "base",
    [
        "somebody/FLUX.1-schnell-dev-merged",
        "somebody/FLUX.2-klein-4b-fp8",
        "z-image/private-base",
        "/data/z-image/another-base",
    ],
)
def test_nothing_is_called_open_that_may_not_be(base):
    assert license_of(base) is None


def test_what_is_made_of_a_restricted_base_is_restricted():
    known = license_of("somebody/FLUX.2-klein-9B-bnb-4bit")
    assert known is not None
    assert "NON-COMMERCIAL" in known.terms
