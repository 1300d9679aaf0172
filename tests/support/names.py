"""The names of the surface and the kernel module of each, as the kernel's contract has them."""

import json

from support import ROOT

_CONTRACT = json.loads((ROOT / "tests" / "kernel" / "contract.json").read_text(encoding="utf-8"))
HOMES: dict[str, str] = {
    name: entry["module"] for name, entry in _CONTRACT.items() if "module" in entry
}
