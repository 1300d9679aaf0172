"""What every test of this room uses."""

from support.signing import logs_are_clean, reasons

__all__ = ["logs_are_clean", "reasons"]  # fixtures
