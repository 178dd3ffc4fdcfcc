"""The subcommand that collects importance matrices."""

from __future__ import annotations

from llama_magic.notebook.converters import integer
from llama_magic.notebook.flags import own_flag, own_switch
from llama_magic.notebook.parsers import Parser

__all__ = ["PARSERS"]

_CHUNKS = integer(1, "a number of chunks, 1 or more (-1 for all)", {"-1": None})
_FREQUENCY = integer(1, "a number of chunks, 1 or more")
_ZERO_UP = integer(0, "a number of chunks, 0 or more")
_CHUNK_SIZE = integer(32, "a number of tokens, 32 or more")

# fmt: off
PARSERS: tuple[Parser, ...] = (
    Parser("imatrix", "imatrix [model] [--text FILE …] [-o FILE] [flags]",
           "collect an importance matrix: what a model's weights are multiplied with while it reads a text",
           ("model", "loading"), words=99, complete="model",
           own=(
               own_flag("-f --text --file", "text", "FILE", str,
                        "text to read; may be repeated. Without it: the calibration text of llama_magic",
                        repeat=True, complete="file"),
               own_flag("-o --out --output --output-file", "file_out", "FILE", str,
                        "file to write (without it: MODEL.imatrix.gguf in this folder)", complete="file"),
               own_flag("-c --ctx-size", "n_ctx", "N", _CHUNK_SIZE, "tokens in a chunk (512)"),
               own_flag("--chunks", "chunks", "N", _CHUNKS, "read at most N chunks"),
               own_flag("--chunk --from-chunk", "from_chunk", "N", _ZERO_UP, "leave the first N chunks out"),
               own_flag("--in-file", "in_file", "FILE", str,
                        "matrix to start from; may be repeated. Without a model and a text they are only added up",
                        repeat=True, complete="file"),
               own_flag("-ofreq --output-frequency", "output_frequency", "N", _FREQUENCY,
                        "keep what was read every N chunks (10): a stopped call goes on from there"),
               own_flag("--save-frequency --save-every", "save_frequency", "N", _ZERO_UP,
                        "write a copy, FILE.at_…, every N chunks"),
               own_switch("--process-output", "process_output", "collect for the output matrix, too"),
               own_switch("--parse-special", "parse_special", "read <|im_start|> and the like as the tokens they name"),
               own_switch("--no-ppl", "perplexity", "do not compute the perplexity of the text", const=False),
               own_switch("--force", "force",
                          "overwrite a file that was made otherwise; load a model that seems not to fit"),
           ),
           examples=("%llama imatrix model-f16.gguf --text notes.txt",
                     "%llama imatrix smollm2 --chunks 20 -o smollm2.imatrix.gguf",
                     "%llama imatrix --in-file a.gguf --in-file b.gguf -o both.gguf"),
           run="llama_magic.notebook.actions.imatrix:imatrix"),
)
# fmt: on
