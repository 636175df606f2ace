"""Pin the ranges of pyproject.toml, with hashes and without any index address: `make lock`."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
COMMON = [
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--no-header",
    "--no-strip-extras",  # pip takes `x[extra]` of a dependency for pinned only where the lock says it
    "--quiet",
]
PROJECT = "../pyproject.toml"
LOCKS = {
    "run.lock": [PROJECT],
    "build.lock": [f"--group={PROJECT}:build", "--constraints=run.lock"],
    "dev.lock": [
        PROJECT,
        f"--group={PROJECT}:dev",
        f"--group={PROJECT}:build",
        "--constraints=run.lock",
        "--constraints=build.lock",
    ],
    "bench.lock": [
        PROJECT,
        f"--group={PROJECT}:dev",
        f"--group={PROJECT}:build",
        f"--group={PROJECT}:bench",
        "--constraints=dev.lock",
    ],
}


def main() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
    for name, sources in LOCKS.items():
        command = [sys.executable, "-m", "uv", "pip", "compile", *sources, *COMMON, "-o", name]
        subprocess.run(command, cwd=HERE, env=environment, check=True)
        print(f"requirements/{name}")


if __name__ == "__main__":
    main()
