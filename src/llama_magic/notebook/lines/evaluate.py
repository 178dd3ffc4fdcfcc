"""Subcommands that evaluate models on texts."""

from __future__ import annotations

from llama_magic.notebook.converters import integer
from llama_magic.notebook.flags import own_flag, own_switch
from llama_magic.notebook.parsers import Parser

__all__ = ["PARSERS"]

_HERE = "llama_magic.notebook.actions.evaluate"
_CHUNKS = integer(1, "a number of chunks, 1 or more (-1 for all)", {"-1": None})
_CHUNK_SIZE = integer(8, "a number of tokens, 8 or more")
_STRIDE = integer(1, "a number of tokens, 1 or more")
_TOKENS = integer(1, "a number of tokens, 1 or more")
_TOP = integer(1, "a number from 1 to 20", most=20)

# fmt: off
PARSERS: tuple[Parser, ...] = (
    Parser("perplexity", "perplexity [model …] [--base MODEL] [--text FILE] [flags]",
           "perplexity of a text as llama-perplexity computes it; with --base also the KL divergence from that model",
           ("model", "loading"), only=("out",), words=99, complete="model",
           own=(
               own_flag("-f --text --file", "text", "FILE|NAME", str,
                        "text to read: a file, or a variable. Without it: the evaluation text of llama_magic",
                        complete="file"),
               own_flag("--base --kl-divergence-base", "base", "MODEL", str,
                        "compare with this model: all statistics of llama-perplexity --kl-divergence",
                        complete="model"),
               own_flag("-c --ctx-size", "n_ctx", "N", _CHUNK_SIZE, "tokens in a chunk (512)"),
               own_flag("--chunks", "chunks", "N", _CHUNKS, "read at most N chunks"),
               own_flag("--stride --ppl-stride", "stride", "N", _STRIDE,
                        "move a window by N tokens and score its last N, instead of chunks"),
               own_switch("--force", "force", "load models that seem not to fit"),
           ),
           examples=("%llama perplexity smollm2 --chunks 8",
                     "%llama perplexity model-q4_0.gguf model-q2_k.gguf --base model-f16.gguf",
                     "%llama perplexity model-q8_0.gguf --text wiki.test.raw -c 2048 --out result"),
           run=f"{_HERE}:perplexity"),
    Parser("diverge", "diverge MODEL QUANTIZED|TYPE … --prompt TEXT [-n N] [flags]",
           "force the reference's text through quantized models: where they disagree, token by token",
           ("loading",), only=("out", "prompt", "complete"), words=99, complete="model,ftype",
           own=(
               own_flag("-n --predict --n-predict --max-tokens", "max_tokens", "N", _TOKENS,
                        "tokens of text (128)"),
               own_flag("--text -f --file", "text", "FILE|NAME", str,
                        "force this text instead of the reference's own answer: a file, or a variable",
                        complete="file"),
               own_flag("--top", "top", "K", _TOP, "likeliest tokens to show at each place (5)"),
               own_switch("--live", "live", "with a slider over the tokens, which needs a running kernel"),
               own_switch("--force", "force", "load models that seem not to fit"),
           ),
           examples=("%llama diverge smollm2 Q2_K --prompt 'Explain tides to a child.'",
                     "%llama diverge model-f16.gguf model-q4_0.gguf model-q2_k.gguf -p 'Count to twenty.' -n 64"),
           run=f"{_HERE}:diverge"),
)
# fmt: on
