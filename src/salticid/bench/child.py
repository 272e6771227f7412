"""Peak memory of a whole process that does nothing but answer once. `measure_peak` starts it; `python -m salticid.bench.child` is it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass

import torch

from salticid.bench.memory import forget_peak, peak, resident
from salticid.bench.subject import Subject
from salticid.errors import SalticidError


@dataclass(frozen=True)
class Peak:
    """Bytes, of the whole process. libraries: after the imports. answer: the most while a photo was read and answered.

    whole: the most at any time. With random weights that includes making the plain weights that small ones are rounded from, which nobody
    with a model on disk does, so that `answer` is what counts there.
    """

    libraries: int
    whole: int
    answer: int


def measure_peak(subject: Subject, precision: str, prompt_tokens: int, new_tokens: int, threads: int) -> Peak:
    """Run the subject in a new process.

    Raises:
        SalticidError: the process failed; the message is its last line.
    """
    job = {"subject": asdict(subject), "precision": precision, "prompt": prompt_tokens, "new": new_tokens, "threads": threads}
    command = [sys.executable, "-m", "salticid.bench.child", json.dumps(job)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = result.stderr.strip().splitlines()[-1:] or [f"it was ended by signal {-result.returncode}, perhaps for lack of memory"]
        raise SalticidError(f"the measured process failed: {last[0]}")
    return Peak(**json.loads(result.stdout.splitlines()[-1]))


def answer_once(subject: Subject, precision: str, prompt_tokens: int, new_tokens: int) -> Peak:
    """Build, look at one photo, answer; in this process."""
    from salticid.bench.prompt import random_prompt
    from salticid.bench.runners.salticid_engine import SalticidRunner

    libraries = resident()
    model = subject.build(precision)
    gc.collect()
    built = peak()
    forgotten = subject.shape is not None and forget_peak()
    vision = model.config.vision_config
    with torch.inference_mode():
        model.get_image_features(torch.zeros(1, 3, vision.image_size, vision.image_size))
    SalticidRunner(model).run(random_prompt(model.config, prompt_tokens), new_tokens, lambda _: None)
    answer = peak()
    return Peak(libraries, max(built, answer), answer if forgotten else max(built, answer))


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    print(json.dumps(asdict(answer_once(Subject(**job["subject"]), job["precision"], job["prompt"], job["new"]))))


if __name__ == "__main__":
    main()
