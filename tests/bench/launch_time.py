"""Runs inside an engine image: time from starting `launch` to the first instruction of the engine, against `python3 -c ''`.

The engine is a shell script that writes down the time, so that nothing of the engine itself is measured. Prints JSON:
medians in milliseconds over paired runs.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = int(sys.argv[1])
folder = Path(tempfile.mkdtemp())
(folder / "vllm").write_text(f"#!/bin/sh\nexec date +%s%N >{folder}/at\n")
(folder / "vllm").chmod(0o755)
env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
bare, launch = [], []
for _ in range(RUNS + 1):
    began = time.time_ns()
    subprocess.run(["/usr/bin/python3", "-c", ""], check=True)
    bare.append(time.time_ns() - began)
    began = time.time_ns()
    subprocess.run(["launch"], env=env, capture_output=True, check=False)
    launch.append(int((folder / "at").read_text()) - began)
print(json.dumps({name: statistics.median(times[1:]) / 1e6 for name, times in (("python", bare), ("launch", launch))}))
