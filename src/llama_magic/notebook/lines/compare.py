"""Subcommands that compare quantization levels, and choose one."""

from __future__ import annotations

from llama_magic.models.overrides import parse_size
from llama_magic.notebook.converters import integer, names_of, number
from llama_magic.notebook.flags import Flag, own_flag, own_switch
from llama_magic.notebook.parsers import Parser

__all__ = ["PARSERS"]

_HERE = "llama_magic.notebook.actions.compare"
_CHUNKS = integer(1, "a number of chunks, 1 or more (-1 for all)", {"-1": None})
_CHUNK_SIZE = integer(16, "a number of tokens, 16 or more")
_RUNS = integer(0, "a number of runs, 0 or more")
_TOKENS = integer(0, "a number of tokens, 0 or more")
_KLD = number("a KL divergence, 0 or more", 0)
_TPS = number("tokens a second, 0 or more", 0)

# fmt: off
_COMMON: tuple[Flag, ...] = (
    own_flag("--text", "text", "FILE|NAME", str,
             "text for perplexity and KL divergence: a file, or a variable. Without it: the one of llama_magic",
             complete="file"),
    own_flag("-c --ctx-size", "n_ctx", "N", _CHUNK_SIZE, "tokens in a chunk of the text (512)"),
    own_flag("--chunks", "chunks", "N", _CHUNKS, "read at most N chunks of the text (8; -1: all of it)"),
    own_flag("--base", "base", "TYPE|MODEL", str,
             "the reference (without it: the model itself, or F16 made of it where it is quantized)",
             complete="model,ftype"),
    own_flag("--imatrix", "imatrix", "FILE|auto", str,
             "importance matrix for the types that are made; auto makes one", complete="file"),
    own_flag("--runs", "runs", "N", _RUNS, "timed runs of each level (3); 0: speed is not measured"),
    own_flag("--n-prompt", "n_prompt", "N", _TOKENS, "tokens read in a timed run (512)"),
    own_flag("--n-gen", "n_gen", "N", _TOKENS, "tokens generated in a timed run (128)"),
    own_switch("--force", "force", "load levels that seem not to fit into memory"),
)

PARSERS: tuple[Parser, ...] = (
    Parser("compare", "compare [MODEL] [LEVEL …] [flags]",
           "quantization levels side by side: size, memory, speed, perplexity, KL divergence and answers",
           ("model", "loading", "sampling"), only=("out", "system", "complete"), words=99, complete="model,ftype",
           own=(
               own_flag("-p --prompt", "prompt", "TEXT", str, "what all levels answer (or the body of a cell)"),
               *_COMMON,
               own_switch("--no-text", "text", "neither perplexity nor KL divergence", const=False),
               own_switch("--suite", "suite", "KL divergence by kind of text, too: prose, code, arithmetic, …"),
               own_flag("--backends", "backends", "a,b", names_of,
                        "measure on each of these backends; a/b uses both together", complete="backend"),
               own_flag("--max-kld", "max_kld", "X", _KLD, "divergence up to which a level may be recommended (0.05)"),
               own_flag("--save", "save", "FILE", str,
                        "write the result: .md, .csv, .json, .html, .svg or .png; may be repeated",
                        repeat=True, complete="file"),
               own_switch("--clear", "clear", "delete the files that earlier comparisons made"),
           ),
           examples=("%llama compare smollm2 Q8_0 Q4_0 Q2_K --chunks -1",
                     '%llama compare model-f16.gguf Q4_K_M Q4_0 --prompt "Name three rivers." --save levels.md',
                     "%llama compare owner/repo:F16 Q5_K_M Q4_K_M --imatrix auto --suite"),
           run=f"{_HERE}:compare"),
    Parser("choose", "choose [MODEL] [LEVEL …] [--max-memory SIZE] [--max-kld X] [--min-tps X]",
           "find the smallest level that is good and fast enough, measuring as few as needed",
           ("model", "loading"), only=("out",), words=99, complete="model,ftype",
           own=(
               own_flag("--max-memory", "max_memory", "SIZE", parse_size, "most memory that it may take, such as 4GB"),
               own_flag("--max-kld", "max_kld", "X", _KLD, "largest KL divergence from the reference (0.05)"),
               own_flag("--min-tps", "min_tps", "X", _TPS, "fewest tokens generated a second"),
               *_COMMON,
           ),
           examples=("%llama choose smollm2 --max-kld 0.05",
                     "%llama choose owner/repo:F16 --max-memory 4GB --min-tps 10 --out choice"),
           run=f"{_HERE}:choose"),
)
# fmt: on
