#!/usr/bin/env python3
"""Puts measured tables into a page: DIR/NAME.md between `<!-- NAME -->` and `<!-- /NAME -->`, and what machine it was."""

import os
import pathlib
import platform
import re
import sys

page, directory = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
text = page.read_text()


def put(name, content):
    global text
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not marked.search(text):
        sys.exit(f"{page} has no place for {name}")
    text = marked.sub(lambda found: f"{found.group(1)}{content.strip()}\n{found.group(2)}", text)


def machine():
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())
    return (
        f"{os.cpu_count()} cores ({model.group(1) if model else platform.machine()}), "
        f"{int(memory.group(1)) // (1 << 20)} GiB, Linux {platform.release().split('-')[0]}"
    )


put("machine", machine())
for found in sorted(directory.glob("*.md")):
    put(found.stem, found.read_text())
page.write_text(text)
