"""What `import psf` costs and touches, once Detectron2 is imported."""

from __future__ import annotations

import json
from pathlib import Path

IMPORT = """
import json, os, sys, sysconfig, time, warnings
warnings.simplefilter("ignore")
import detectron2.checkpoint, detectron2.data, detectron2.engine, detectron2.evaluation, detectron2.modeling
import detectron2.utils.visualizer

touched = []
def audit(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        touched.append(os.path.realpath(os.fsdecode(arguments[0])))
    elif event.startswith(("socket.", "urllib.", "http.", "subprocess.", "os.system")):
        touched.append(event)

sys.addaudithook(audit)
warnings.simplefilter("error")
start = time.process_time()
import psf
seconds = time.process_time() - start
touched = sorted(set(touched))

import torch
paths = {*sysconfig.get_paths().values(), sys.base_prefix}
print(json.dumps({
    "seconds": seconds,
    "touched": touched,
    "libraries": sorted(map(os.path.realpath, paths)),
    "gpu": torch.cuda.is_initialized(),
}))
"""


def test_import_is_cheap_and_touches_nothing(run_python, repository: Path) -> None:
    process = run_python("-c", IMPORT)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    (line,) = process.stdout.splitlines()  # psf printed nothing
    report = json.loads(line)
    allowed = (str(repository / "psf"), *report["libraries"])
    assert not [path for path in report["touched"] if not path.startswith(allowed)]
    assert [path for path in report["touched"] if path.startswith(str(repository / "psf"))]  # the hook does listen
    assert report["seconds"] < 1.0
    assert not report["gpu"]
