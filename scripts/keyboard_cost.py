"""Measures what the keyboard costs a phone: memory and time of a burst, time of a suggestion.

    python scripts/keyboard_cost.py [keyboard.pte]

Memory is the growth of this process (Linux): anonymous memory, and pages of the mapped
program, which the system can drop at any time.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pockmobile.keyboard import Personalizer, Settings
from scripts.keyboard_text import sms_writers
from scripts.realdata import load_nus_sms

NUM_MESSAGES = 500
NUM_BURSTS = 5
NUM_SUGGESTIONS = 50


def main() -> int:
    """Prints the costs."""
    torch.set_num_threads(1)
    messages = next(m for m in sms_writers(load_nus_sms()).values() if len(m) >= NUM_MESSAGES)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(sys.argv[1]) if sys.argv[1:] else _export(Path(folder) / "keyboard.pte")
        before = _memory()
        settings = Settings(save_every=NUM_MESSAGES)
        keyboard = Personalizer(program, Path(folder) / "mine", settings=settings)
        for number, message in enumerate(messages[:NUM_MESSAGES]):
            keyboard.add(message, at=float(number))
        keyboard.suggest("are you")
        typing = _memory()
        bursts = [keyboard.train() for _ in range(NUM_BURSTS)]
        after = _memory()
        times = []
        for _ in range(NUM_SUGGESTIONS):
            start = time.perf_counter()
            keyboard.suggest("are you")
            times.append(time.perf_counter() - start)
        seconds = [burst.seconds for burst in bursts]
        sizes = {path.name: path.stat().st_size for path in Path(folder, "mine").iterdir()}
    print(f"predicting adds    {_told(typing, before)}")
    print(f"a burst adds       {_told(after, typing)} to that")
    print(f"a burst of {settings.num_steps} steps {median(seconds):.2f} s, with the gate")
    print(f"a suggestion       {median(times) * 1e3:.2f} ms")
    print(f"on disk            {sum(sizes.values()) / 1e6:.2f} MB: {sizes}")
    return 0


def _export(path: Path) -> Path:
    """Makes the program in a process of its own, so that the compiler is not in this one."""
    folder = path.parent
    script = Path(__file__).with_name("keyboard_programs.py")
    subprocess.run(
        [sys.executable, script, "-o", folder], check=True, stdout=subprocess.DEVNULL
    )
    return path


def _memory() -> dict[str, int]:
    """Returns the largest memory so far and what of it is mapped files, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {
        name: int(found[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon", "RssFile")
    }


def _told(now: dict[str, int], before: dict[str, int]) -> str:
    grown = {name: (now[name] - before[name]) / 1e6 for name in now}
    return (
        f"{grown['VmHWM']:.1f} MB at its peak; after it {grown['RssAnon']:.1f} MB anonymous "
        f"and {grown['RssFile']:.1f} MB of mapped files"
    )


if __name__ == "__main__":
    sys.exit(main())
