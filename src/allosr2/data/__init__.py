"""Training pairs: photographs, their degradation, and procedural images."""
