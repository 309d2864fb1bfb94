"""Writes the files that belong beside a model's weights, into its artifact and every export.

They are the tokenizer with its chat templates, generation_config.json (it says which tokens end a text), the
base model's licence files, a notice of what was changed, and a README.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from compression.base import ModelUnavailable
from compression.bundle import Bundle
from compression.folder import Folder

# patterns of file names; upper and lower case count as the same
LICENCES = ("license*", "licence*", "notice*", "use_policy*", "copying*")
MOST_BYTES = 1_000_000  # of a licence file
NOTICE = "NOTICE.txt"
OURS = "This folder holds a modified copy of"
THEIRS = "\nThe base model's own notice:\n\n"


def write(bundle: Bundle, folder: Path, label: str, how_to_load: str) -> None:
    """Write all these files to `folder`. label: what was done to the model."""
    several = isinstance(
        bundle.tokenizer.chat_template, dict
    )  # then they stand in tokenizer_config.json, which every loader reads
    bundle.tokenizer.save_pretrained(folder, save_jinja_files=not several)
    bundle.module.generation_config.to_json_file(folder / "generation_config.json")
    base = _licences(bundle.source.get("folder"))
    for name, content in base.items():
        (folder / name).write_bytes(content)
    licence = bundle.source.get("licence") or "see the base model's page"
    origin = bundle.source.get("id") or Path(bundle.name).name
    theirs = base.get(NOTICE, b"").decode("utf-8", "replace")
    if theirs.startswith(OURS):  # the notice that we wrote into the artifact which is exported here
        theirs = theirs.partition(THEIRS)[2]
    (folder / NOTICE).write_text(
        f"{OURS} {origin} (licence of the base model: {licence}).\n"
        f"Modification: {label}, by Compression Explorer. The base model's licence and terms apply.\n"
        + (THEIRS + theirs if theirs else ""),
        "utf-8",
    )
    (folder / "README.md").write_text(
        f"# {origin}, {label}\n\nLicence of the base model: {licence}. {how_to_load}", "utf-8"
    )


def _licences(folder: str | None) -> dict[str, bytes]:
    """The licence files of a model's folder, by name.

    Entries that are no plain files, or very large, are left out.
    """
    found, place = {}, Folder(folder) if folder and Path(folder).is_dir() else None
    for name in place.names() if place else ():
        if any(fnmatch(name.lower(), pattern) for pattern in LICENCES):
            try:
                found[name] = place.read(name, MOST_BYTES)
            except ModelUnavailable:
                continue
    return found
