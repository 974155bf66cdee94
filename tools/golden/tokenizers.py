#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains small tokenizers of every family with Hugging Face `tokenizers` and records what they answer.

  tokenizers.py compact TEXT...        writes tests/golden/tokenizers: small tokenizer.json files and, for each,
                                       hashes of the reference's answers to 20,000 generated strings
  tokenizers.py full DIR TEXT...       larger vocabularies, every string and answer spelled out, for
                                       NIBBLE_TOKENIZER_ORACLE=DIR tokenizer_golden_test
  tokenizers.py hash FILE [FILE...]    hashes for existing tokenizer.json files, to standard output
  tokenizers.py unicode                writes tests/golden/tokenizers/unicode.json: hashes of the reference's
                                       classes and mappings over all code points

Strings come from a generator that tests/support/tokenizer_strings.h repeats in C++, so only hashes are stored.
"""
import json
import pathlib
import struct
import sys

sys.path.pop(0)  # this folder: the script has the name of the library it needs
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "tokenizers"
STRINGS, BLOCK = 20000, 250
MASK = (1 << 64) - 1


# ---- the generator; keep in step with tests/support/tokenizer_strings.h -------------------------------------------
class Random:
    """splitmix64 (Steele, Lea, Flood 2014)."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return (z ^ (z >> 31)) % n


def scalar(n):
    return chr(n if n < 0xD800 else n + 0x800)


def in_ranges(random, ranges):
    first, last = ranges[random.below(len(ranges))]
    return chr(first + random.below(last - first + 1))


def part(random, atoms):
    kind = random.below(12)
    if kind == 0:
        return scalar(random.below(0x110000 - 0x800))
    if kind == 1:
        return scalar(random.below(0x10000 - 0x800))
    if kind == 2:
        return in_ranges(random, atoms["scripts"])
    if kind == 3:
        return chr(atoms["spaces"][random.below(len(atoms["spaces"]))]) * (1 + random.below(12))
    if kind == 4:
        return "".join(in_ranges(random, atoms["scripts"][:1]) for _ in range(1 + random.below(10)))
    if kind == 5:
        return in_ranges(random, atoms["scripts"]) + "".join(
            in_ranges(random, atoms["marks"]) for _ in range(1 + random.below(6)))
    if kind == 6:
        return "".join(chr(48 + random.below(10)) for _ in range(1 + random.below(8)))
    name = ("words", "words", "code", "emoji", "tokens")[kind - 7]
    return atoms[name][random.below(len(atoms[name]))]


def generate(index, atoms):
    """Bytes; one string in about fifty is not UTF-8."""
    random = Random(index)
    out = b""
    for _ in range(random.below(9)):
        out += part(random, atoms).encode()
        if random.below(200) == 0:
            out += bytes.fromhex(atoms["invalid"][random.below(len(atoms["invalid"]))])
    return out


def random_ids(index, vocab_size):
    random = Random(index ^ 0x5555555555555555)
    return [random.below(vocab_size + 3) for _ in range(random.below(16))]


class Hash:
    """FNV-1a, 64 bits, over 32-bit words and strings."""

    def __init__(self):
        self.value = 0xCBF29CE484222325

    def bytes(self, data):
        for b in data:
            self.value = ((self.value ^ b) * 0x100000001B3) & MASK

    def ids(self, ids):
        self.bytes(struct.pack(f"<{len(ids) + 1}I", len(ids), *ids))

    def text(self, text):
        data = text.encode()
        self.bytes(struct.pack("<I", len(data)) + data)


# ---- what the reference answers ----------------------------------------------------------------------------
def answers(tok, index, atoms):
    data = generate(index, atoms)
    vocab = max(tok.get_vocab(with_added_tokens=True).values()) + 1 if not hasattr(tok, "size") else tok.size
    result = {"hex": data.hex(), "random_ids": random_ids(index, vocab)}
    inner = getattr(tok, "inner", tok)
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        result["invalid_at"] = e.start
        text = None
    if text is not None:
        inner.encode_special_tokens = False
        result["ids"] = inner.encode(text).ids
        result["ids_omit"] = inner.encode(text, add_special_tokens=False).ids
        inner.encode_special_tokens = True
        result["ids_plain"] = inner.encode(text).ids
        result["text"] = inner.decode(result["ids"], skip_special_tokens=False)
        result["text_skip"] = inner.decode(result["ids"], skip_special_tokens=True)
    result["random_text"] = inner.decode(result["random_ids"], skip_special_tokens=False)
    result["random_text_skip"] = inner.decode(result["random_ids"], skip_special_tokens=True)
    return result


class Sized:
    """A tokenizer with its largest id at hand."""

    def __init__(self, inner):
        self.inner = inner
        self.size = max(inner.get_vocab(with_added_tokens=True).values()) + 1


def hashes(tok, atoms, strings=STRINGS):
    tok = Sized(tok)
    blocks = []
    for first in range(0, strings, BLOCK):
        encode, plain, decode = Hash(), Hash(), Hash()
        for index in range(first, min(first + BLOCK, strings)):
            a = answers(tok, index, atoms)
            if "invalid_at" in a:
                encode.ids([0xFFFFFFFF, a["invalid_at"]])
            else:
                encode.ids(a["ids"])
                encode.ids(a["ids_omit"])
                plain.ids(a["ids_plain"])
                decode.text(a["text"])
                decode.text(a["text_skip"])
            decode.text(a["random_text"])
            decode.text(a["random_text_skip"])
        blocks.append([f"{h.value:016x}" for h in (encode, plain, decode)])
    return {"strings": strings, "block": BLOCK, "encode_plain_decode": blocks,
            "reference": "tokenizers " + tokenizers.__version__}


# ---- the families -------------------------------------------------------------------------------------------
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
          r"|\s*[\r\n]|\s+(?!\S)|\s+")


def byte_level(texts, size, pre, special, **model):
    tok = Tokenizer(models.BPE(**model))
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tok.train_from_iterator(texts, trainer)
    tok.add_special_tokens(special)
    return tok


def split_byte_level(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2(texts, size):
    tok = byte_level(texts, size, pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"])
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    return tok


def gpt2_prefix(texts, size):
    """add_prefix_space, runs of spaces as added tokens (GPT-NeoX), and a closing special token."""
    tok = byte_level(texts, size, pre_tokenizers.ByteLevel(add_prefix_space=True), ["<s>", "</s>"])
    tok.add_tokens([AddedToken(" " * n, normalized=True) for n in range(12, 1, -1)])
    bos, eos = tok.token_to_id("<s>"), tok.token_to_id("</s>")
    tok.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", eos)])
    return tok


def llama3(texts, size):
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tok = byte_level(texts, size, split_byte_level(LLAMA3), special, ignore_merges=True)
    bos = tok.token_to_id("<|begin_of_text|>")
    tok.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)])])
    return tok


def qwen2(texts, size):
    tok = byte_level(texts, size, split_byte_level(QWEN2), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tok.add_tokens([AddedToken("<tool_call>", special=False, normalized=False),
                    AddedToken("</tool_call>", special=False, normalized=False)])
    tok.normalizer = normalizers.NFC()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    return tok


def o200k(texts, size):
    tok = byte_level(texts, size, split_byte_level(O200K), ["<|endoftext|>"], ignore_merges=True)
    tok.normalizer = normalizers.NFD()
    return tok


def cl100k(texts, size):
    tok = byte_level(texts, size, split_byte_level(CL100K), ["<|endoftext|>", "<|fim|>"])
    tok.normalizer = normalizers.NFKD()
    return tok


def splits(texts, size):
    """Every Split behavior, string and regex, inverted or not, and digit groups, as DeepSeek and StarCoder do."""
    split = pre_tokenizers.Split
    pre = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=False), split("e", "merged_with_previous"),
        split("-", "merged_with_next"), split(Regex(r"[\u4e00-\u9fa5\u3040-\u30ff]+"), "contiguous"),
        split(Regex(r"\p{P}{2}"), "removed"), split(Regex(r"\w+"), "contiguous", invert=True),
        split(Regex(r"[\r\n]"), "isolated"), pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    return byte_level(texts, size, pre, [AddedToken("<|a|>", lstrip=True), AddedToken("<|a|>b", rstrip=True)])


def sentencepiece(texts, size, pre, normalizer, bytes_kept=range(256), **model):
    special = ["<unk>", "<s>", "</s>"]
    train = Tokenizer(models.BPE(unk_token="<unk>"))
    train.normalizer, train.pre_tokenizer = normalizer, pre_tokenizers.Metaspace()
    hexes = [f"<0x{b:02X}>" for b in bytes_kept]
    train.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special + hexes,
                                                         limit_alphabet=80, show_progress=False))
    parts = json.loads(train.to_str())["model"]
    tok = Tokenizer(models.BPE(vocab=parts["vocab"], merges=[tuple(m) for m in parts["merges"]], unk_token="<unk>",
                               **model))
    tok.normalizer = normalizer
    if pre:
        tok.pre_tokenizer = pre
    tok.add_special_tokens([AddedToken(s, normalized=False) for s in special])
    bos = tok.token_to_id("<s>")
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    return tok


def llama2(texts, size):
    return sentencepiece(texts, size, None, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
                         byte_fallback=True, fuse_unk=True)


def mistral(texts, size):
    return sentencepiece(texts, size, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), None,
                         byte_fallback=True, fuse_unk=True)


def metaspace(texts, size):
    """Metaspace decoder; only some byte tokens, so that unknown characters and fallback meet."""
    tok = sentencepiece(texts, size, pre_tokenizers.Metaspace(), None, bytes_kept=range(0x80, 0xE8), byte_fallback=True,
                        fuse_unk=False)
    tok.decoder = decoders.Metaspace()
    return tok


def unknown(texts, size):
    """No byte fallback: unknown characters fuse. Strip, Whitespace, and a decoder that strips both ends."""
    tok = sentencepiece(texts, size, pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace()]),
                        normalizers.Strip(), bytes_kept=[], fuse_unk=True)
    tok.decoder = decoders.Sequence([decoders.Metaspace(), decoders.Fuse(), decoders.Strip(" ", 2, 0)])
    return tok


def tricky(texts, size):
    """NFKC, Lowercase, a regex Replace, punctuation, and added tokens with every flag; no decoder."""
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(),
                                           normalizers.Replace(Regex(r" {2,}"), " "), normalizers.Replace("``", '"')])
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(),
                                                 pre_tokenizers.Punctuation("merged_with_previous")])
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>"], limit_alphabet=120,
                                                       show_progress=False))
    tok.add_special_tokens([AddedToken("<MASK>", lstrip=True), AddedToken("<CLS>", rstrip=True),
                            AddedToken("<Norm>", normalized=True)])
    tok.add_tokens([AddedToken("the", single_word=True), AddedToken("there", single_word=True), AddedToken("Holmes"),
                    AddedToken("Ünïcode", normalized=True), AddedToken("ﬁn", normalized=False),
                    AddedToken("  ", normalized=False, rstrip=True), AddedToken("<MASK><MASK>", normalized=False),
                    AddedToken("é", normalized=True, lstrip=True, rstrip=True), AddedToken("㎏", normalized=True)])
    return tok


FAMILIES = [gpt2, gpt2_prefix, llama3, qwen2, o200k, cl100k, splits, llama2, mistral, metaspace, unknown, tricky]


# ---- all code points ---------------------------------------------------------------------------------------
def unicode_hashes():
    points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    everything = "".join(map(chr, points))
    result = {}
    for pattern in [r"\p{L}", r"\p{N}", r"\s", r"\d", r"\w", r"\p{P}", r"\p{M}", r"\p{S}", r"\p{Lu}", r"\p{Lo}",
                    r"\p{Han}", r"(?i:s)", r"(?i:[kd])", r"[^\s\p{L}\p{N}]", r"\P{L}"]:
        kept = set(map(ord, normalizers.Replace(Regex(pattern), "").normalize_str(everything)))
        result[pattern] = bits(c not in kept for c in points)
    for name, pre in [("Digits", pre_tokenizers.Digits(True)), ("Whitespace", pre_tokenizers.Whitespace()),
                      ("WhitespaceSplit", pre_tokenizers.WhitespaceSplit()),
                      ("Punctuation", pre_tokenizers.Punctuation())]:
        h = Hash()
        h.bytes(bytes(len(pre.pre_tokenize_str("a" + chr(c) + "a")) for c in points))
        result[name] = f"{h.value:016x}"
    for name in ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"]:
        n, h = getattr(normalizers, name)(), Hash()
        for c in points:
            h.text(n.normalize_str(chr(c)))
        result[name] = f"{h.value:016x}"
    n, h = normalizers.NFC(), Hash()  # every character between marks of a low and a high class
    for c in points:
        h.text(n.normalize_str("a\u0345" + chr(c) + "\u0334\u0301"))
    result["order"] = f"{h.value:016x}"
    return result


def bits(flags):
    h = Hash()
    h.bytes(bytes(flags))
    return f"{h.value:016x}"


def main(arguments):
    mode, rest = arguments[0], arguments[1:]
    atoms = json.loads((GOLDEN / "atoms.json").read_text())
    if mode == "unicode":
        (GOLDEN / "unicode.json").write_text(json.dumps(unicode_hashes(), indent=1) + "\n")
    elif mode == "hash":
        for path in rest:
            print(json.dumps(hashes(Tokenizer.from_file(path), atoms)))
    elif mode == "compact":
        texts = [pathlib.Path(p).read_text() for p in rest]
        for family in FAMILIES:
            tok = family([t[:60000] for t in texts] + atoms["code"] + atoms["emoji"], 1000)
            (GOLDEN / f"{family.__name__}.json").write_text(
                json.dumps(json.loads(tok.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n")
            (GOLDEN / f"{family.__name__}.hashes.json").write_text(
                json.dumps(hashes(tok, atoms), separators=(",", ":")).replace("],[", "],\n[") + "\n")
            print(family.__name__, tok.get_vocab_size())
    elif mode == "full":
        out, texts = pathlib.Path(rest[0]), [pathlib.Path(p).read_text() for p in rest[1:]]
        for family in FAMILIES:
            tok = family(texts + atoms["code"] + atoms["emoji"], 6000)
            tok.save(str(out / f"{family.__name__}.json"))
            sized = Sized(tok)
            with open(out / f"{family.__name__}.jsonl", "w") as f:
                for index in range(STRINGS):
                    f.write(json.dumps(answers(sized, index, atoms)) + "\n")
            print(family.__name__, tok.get_vocab_size())
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
