from __future__ import annotations

from collections import Counter
from dataclasses import fields

from llama_magic.inference.params import SamplingParams
from llama_magic.inference.receipt import _ALWAYS, _CHANGED, _LOADING
from llama_magic.models.options import LoadOptions
from llama_magic.notebook.converters import unescape
from llama_magic.notebook.flags import FLAGS, FORMATS, GROUPS, by_name
from llama_magic.notebook.help import docstring, help_text
from llama_magic.notebook.subcommands import SUBCOMMANDS

#: Spellings of `common/arg.cpp` in the tested llama.cpp, for the flags that exist there.
LLAMA_CPP = set(
    """-m --model -hf -hfr --hf-repo -c --ctx-size -t --threads -tb --threads-batch -b --batch-size -ub --ubatch-size
    -ngl --gpu-layers --n-gpu-layers -dev --device -fa --flash-attn -ctk --cache-type-k -ctv --cache-type-v -lm --load-mode
    -p --prompt -f --file -sys --system-prompt -sysf --system-prompt-file -no-cnv --no-conversation -cnv --conversation
    -n --predict --n-predict -s --seed --temp --temperature --dynatemp-range --dynatemp-exp --top-k --top-p --min-p
    --typical --typical-p --top-nsigma --top-n-sigma --xtc-probability --xtc-threshold --repeat-penalty --repeat-last-n
    --presence-penalty --frequency-penalty --dry-multiplier --dry-base --dry-allowed-length --dry-penalty-last-n
    --dry-sequence-breaker --adaptive-target --adaptive-decay --mirostat --mirostat-lr --mirostat-ent --samplers
    --sampler-seq --sampling-seq -l --logit-bias --ignore-eos -r --reverse-prompt --grammar --grammar-file
    -j --json-schema -jf --json-schema-file -o --output --output-file
    --check-tensors --cpu-moe --kv-offload --lazy-mode --lora --lora-scaled --main-gpu --n-cpu-ffn --n-cpu-moe
    --no-host --no-kv-offload --no-op-offload --no-repack --numa --op-offload --override-kv --override-tensor
    --repack --rope-freq-base --rope-freq-scale --rope-scale --rope-scaling --split-mode --swa-full --tensor-split
    --yarn-attn-factor --yarn-beta-fast --yarn-beta-slow --yarn-ext-factor --yarn-orig-ctx -cmoe -kvo -lzm -mg
    -ncffn -ncmoe -nkvo -nr -ot -sm -ts""".split()
)
OWN = set(
    """--system --max-tokens --stop --schema --format --out --no-stream --samples --logprobs --raw --chat --new --force
    --backend --compare --complete --memory-budget --mlock --no-mmap --no-swa-full""".split()
)


def test_every_spelling_is_llama_cpp_s_or_ours_and_is_unique() -> None:
    names = Counter(name for flag in FLAGS for name in flag.names)
    assert names.keys() == LLAMA_CPP | OWN
    assert max(names.values()) == 1


def test_short_flags_are_llama_cpp_s() -> None:
    assert {name for name in by_name() if not name.startswith("--")} <= LLAMA_CPP


def test_the_receipt_s_flags_are_known_here_and_mean_the_same() -> None:
    for dest, name in (_ALWAYS | _CHANGED | _LOADING).items():
        assert by_name()[name].dest == dest


def test_flags_set_what_exists() -> None:
    sampling = {f.name for f in fields(SamplingParams)} | {"schema"}
    loading = {f.name for f in fields(LoadOptions)} | {"load_mode"}
    for flag in FLAGS:
        assert flag.group in GROUPS
        if flag.group == "sampling":
            assert flag.dest in sampling
        if flag.group == "loading":
            assert flag.dest in loading


def test_every_sampling_parameter_has_a_flag() -> None:
    missing = {f.name for f in fields(SamplingParams)} - {flag.dest for flag in FLAGS}
    assert missing == {"min_keep"}


def test_help_names_everything() -> None:
    cell = help_text("cell")
    assert all(name in cell for flag in FLAGS for name in flag.names)
    overview = help_text()
    assert all(f"%llama {name}" in overview for name in SUBCOMMANDS)
    assert all(shape in help_text("--format") for shape in FORMATS)
    assert overview in docstring()
    for name in SUBCOMMANDS:
        assert help_text(name).startswith(f"%llama {name}")
    for group in GROUPS:
        assert help_text(group)
    for flag in FLAGS:
        assert flag.help in help_text(flag.names[0])
        bare = flag.names[-1].lstrip("-")
        assert bare in SUBCOMMANDS or flag.help in help_text(bare)


def test_unescape_is_llama_cli_s() -> None:
    assert unescape(r"a\nb\tc\\n\"\'\q\x41\d+") == "a\nb\tc\\n\"'\\qA\\d+"
