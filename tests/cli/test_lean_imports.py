"""Commands that answer do without torch's compiler, and leave it as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "photos" / "cat.jpg"

ANSWERED = f"""
import sys
from salticid.cli import session
session.OWN_PROCESS = True
with session.open_model("nano", "auto", "cpu") as vlm:
    print(vlm.ask({str(PHOTO)!r}, "What animal is this?"))
for name in ("torch._dynamo", "torch.distributed.tensor", "sympy"):
    assert name not in sys.modules, name
import torch
assert torch.distributed.is_available.__module__ == "torch.distributed"
assert torch.compiler.disable.__module__ == "torch.compiler"
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
assert "torch._dynamo" in sys.modules
from transformers.masking_utils import TransformGetItemToIndex
with TransformGetItemToIndex():
    assert torch.arange(3)[torch.tensor(2)] == 2
"""

ASKED_FOR_MORE = """
import sys
from salticid.cli.lean_imports import lean_imports
with lean_imports():
    import torch
    assert torch._dynamo.allow_in_graph(abs) is abs and torch.compiler.disable(recursive=False)(abs) is abs
    assert "torch._dynamo.eval_frame" not in sys.modules
    assert torch._dynamo.config.cache_size_limit > 0  # no mark
    real = sys.modules["torch._dynamo"]
    assert "torch._dynamo.eval_frame" in sys.modules
assert sys.modules["torch._dynamo"] is real is torch._dynamo
with lean_imports():  # loaded already
    assert torch._dynamo is real
    assert torch.distributed.is_available()
"""

# as if transformers imported one more part of the compiler
ANOTHER_TRANSFORMERS = f"""
import sys
class Finder:
    tried = 0
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.masking_utils":
            Finder.tried += 1
            import torch._dynamo.eval_frame
sys.meta_path.insert(0, Finder())
from salticid.cli import session
session.OWN_PROCESS = True
with session.open_model("nano", "auto", "cpu") as vlm:
    print(vlm.ask({str(PHOTO)!r}, "What animal is this?"))
assert Finder.tried == 2 and "torch._dynamo.eval_frame" in sys.modules
"""


MODELS_LISTED = """
import sys
from salticid.cli.lean_imports import lean_imports
from transformers.utils import import_utils
own = import_utils.define_import_structure
reads = []
import_utils.fetch__all__ = lambda text, read=import_utils.fetch__all__: (reads.append(1), read(text))[1]
with lean_imports():
    import transformers.models
    assert not reads
assert import_utils.define_import_structure is own
file = transformers.models.__file__
whole = import_utils._LazyModule("transformers.models", file, own(file))
assert len(reads) > 1000
lean = vars(sys.modules["transformers.models"])
for name in ("_modules", "_class_to_module", "_import_structure", "_object_missing_backend"):
    assert lean[name] == vars(whole)[name] and (lean[name] or name.startswith("_object")), name
from transformers.models.llama import LlamaConfig
from transformers.models import LlamaForCausalLM
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_answer_needs_no_compiler_and_leaves_it_whole() -> None:
    assert run(ANSWERED).strip()


def test_whoever_asks_for_more_gets_the_compiler() -> None:
    run(ASKED_FOR_MORE)


def test_a_transformers_that_wants_more_is_given_it() -> None:
    assert run(ANOTHER_TRANSFORMERS) == run(ANSWERED)


def test_the_files_of_models_are_read_once() -> None:
    run(MODELS_LISTED)
