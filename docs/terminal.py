"""Draws terminal.svg: what a terminal shows of a folder run, taken from a real one. Needs tmux.

python docs/terminal.py docs/terminal.svg
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import skimage.data
from PIL import Image
from rich.console import Console
from rich.text import Text

COLUMNS, LINES = 120, 24
PROMPT = "$ "
SESSION = "allosr2-terminal"
# Rich's own format without the fonts that it has a browser fetch.
FORMAT = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font: bold 18px sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def main(target: Path) -> None:
    """Run the commands in a terminal of tmux and draw what it shows during and after them."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder / "holiday")
        environment = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
        size = ("-x", str(COLUMNS), "-y", str(LINES))
        shell = ("env", environment, f"PS1={PROMPT}", "bash", "--norc", "--noprofile")
        tmux("new-session", "-d", "-s", SESSION, *size, "-c", name, *shell)
        try:
            time.sleep(1)
            screens = [after("allosr2 upscale -r holiday --output large --dry-run")]
            during = "allosr2 upscale -r holiday --output large"
            screens += [after(during, "2/5 files"), after(None)]
            screens += [after("allosr2 upscale -r holiday --output large")]
        finally:
            tmux("kill-session", "-t", SESSION)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor")
    console.print(Text.from_ansi("\x1b[0m\n".join(screens)))
    target.write_text(console.export_svg(title="allosr2 upscale", code_format=FORMAT))


def photographs(folder: Path) -> None:
    """Four small photographs, one of them in a folder inside, and one that is torn."""
    (folder / "coast").mkdir(parents=True)
    source = Path(skimage.data.__file__).parent
    for name, target in (
        ("astronaut.png", "portrait.jpg"),
        ("coffee.png", "breakfast.jpg"),
        ("rocket.jpg", "coast/launch.jpg"),
        ("hubble_deep_field.jpg", "sky.jpg"),
    ):
        picture = Image.open(source / name).convert("RGB")
        picture.thumbnail((240, 240))
        picture.save(folder / target, quality=92)
    content = (folder / "sky.jpg").read_bytes()
    (folder / "coast" / "torn.jpg").write_bytes(content[: len(content) // 2])


def after(command: str | None, until: str | None = None) -> str:
    """Type a command; the screen when it shows a text, or when the prompt is back."""
    if command is not None:
        tmux("send-keys", "-t", SESSION, "clear", "Enter")
        time.sleep(1)
        tmux("send-keys", "-t", SESSION, command, "Enter")
    while True:
        time.sleep(0.2)
        screen = tmux("capture-pane", "-p", "-e", "-t", SESSION).rstrip()
        last = screen.splitlines()[-1]
        if until in screen if until else last.rstrip() == PROMPT.rstrip():
            return screen if until else screen.removesuffix(last).rstrip()


def tmux(*arguments: str) -> str:
    """Run tmux; its output."""
    return subprocess.check_output(["tmux", *arguments], text=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
