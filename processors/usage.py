"""The text of --help, made from the table of flags."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from processors.flags import FLAGS, Flag
from processors.settings import DEFAULT_FILE, default_of

HELP_COLUMN = 22


def version() -> str:
    """Of the installed distribution."""
    try:
        return metadata.version("rasher")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def usage(verbs: Mapping[str, str]) -> str:
    """The text of --help, made from the table. `verbs`: name -> one line."""
    lines = ["usage: rasher [VERB] [--FLAG VALUE]...", "", "Without a verb: run. Verbs:"]
    lines += [f"  {name:<10} {line}" for name, line in verbs.items()]
    lines += ["", "flag > RASHER_ variable (--data-dir: RASHER_DATA_DIR) > rasher.toml > default."]
    lines += ["Bare numbers are seconds or bytes. Relative paths start at the working directory."]
    for flag in FLAGS:
        lines += ["", f"{flag.group}:"] if flag.group else []
        lines += flag_lines(flag)
    lines += [
        "",
        "File:",
        f"{'  --config':<{HELP_COLUMN}}a toml file with the same names, as in data-dir = './var'",
    ]
    lines += [f"{'':{HELP_COLUMN}}default {DEFAULT_FILE} if there is one here [RASHER_CONFIG]"]
    return "\n".join(lines)


def flag_lines(flag: Flag) -> list[str]:
    option = f"  {flag.option}"
    head = f"{option:<{HELP_COLUMN - 1}} {flag.help}"
    default = flag.default_text or f"{default_of(flag)}".removesuffix(".0")
    return [head, f"{'':{HELP_COLUMN}}{flag.range_text}; default {default} [{flag.variable}]"]
