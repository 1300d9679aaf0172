"""What more than one room of the tests needs. No test imports another test."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
