"""Coverage-guided fuzzing: make fuzz [FUZZ_TARGET=remotecommand] [FUZZ_SECONDS=60]

    python -m tests.fuzz TARGET [arguments of libFuzzer]

Atheris measures what of the target's modules an input reaches, libFuzzer changes inputs until they reach more. Inputs
that did are kept in build/fuzz/TARGET, what broke something in build/fuzz/TARGET.crash-*: a finding becomes a test.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    # In an environment of its own, which the type checker does not know.
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["k8sproxy.protocol", "k8sproxy.recording", "recorder.screen"]):
        targets = importlib.import_module("tests.fuzz.targets").TARGETS
    name, arguments = sys.argv[1], sys.argv[2:]
    target = targets[name]
    corpus = Path("build/fuzz") / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    options = [
        f"-artifact_prefix={corpus}.",
        "-timeout=5",
        "-max_len=1024",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, *arguments, str(corpus)], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
