"""Write constraints.txt: the versions of this environment that the project needs, no others.

Follows the requirements of pyproject.toml with the extras `onnx`, `postgres`, `test`, `bench` and
`dev` through the installed packages. What else lies in the environment (an editor's tools) is left
out, and so are local version suffixes: `torch==2.13.0` matches the CPU and the CUDA build alike.

    .venv/bin/python tools/freeze_constraints.py > constraints.txt
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("onnx", "postgres", "test", "bench", "dev")


def direct_requirements() -> list[Requirement]:
    """Of the project itself and of its extras, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def closure(requirements: list[Requirement]) -> dict[str, str]:
    """Name -> installed version of everything that `requirements` pull in, extras included."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = list(requirements)
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        installed = distribution(name)
        version = Version(installed.version)
        if not requirement.specifier.contains(version, prereleases=True):
            raise SystemExit(f"{requirement} is not satisfied by {name} {version}")
        versions[name] = version.public
        for extra in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            for line in installed.requires or []:
                child = Requirement(line)
                if child.marker is None or child.marker.evaluate({"extra": extra}):
                    queue.append(child)
    return versions


def main() -> None:
    try:
        versions = closure(direct_requirements())
    except PackageNotFoundError as error:
        extras = ", ".join(EXTRAS)
        raise SystemExit(f"not installed: {error}; install the extras {extras}") from error
    print("# Written by tools/freeze_constraints.py, from a tested environment on Python", end=" ")
    print(".".join(map(str, sys.version_info[:2])))
    for name in sorted(versions):
        print(f"{name}=={versions[name]}")


if __name__ == "__main__":
    main()
