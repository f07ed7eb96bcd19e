"""The rows of a network without a head, on token ids."""

from __future__ import annotations

from ..model import Model


class Features(Model):
    """Hidden states: :meth:`run` on token ids gives float32 [tokens, width]."""
