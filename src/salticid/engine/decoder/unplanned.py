"""What stops a plan; `make_decoder` catches it and takes the model's own modules instead."""

from __future__ import annotations


class Unplanned(Exception):
    """The language model computes something that the lean decoder does not know."""
