"""Tests of a mixin that do not apply to a class, with reasons, are left out."""

import unittest


def leave_out(reasons):
    """Decorate a test class: the tests that ``reasons`` names are skipped, and pytest says why."""

    def decorate(cls):
        for name, reason in reasons.items():
            if hasattr(cls, name):
                setattr(cls, name, unittest.skip(f"not applicable: {reason}")(getattr(cls, name)))
        return cls

    return decorate
