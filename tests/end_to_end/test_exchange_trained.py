"""What is trained here opens there: pretrain, export, and a process without triune on its path that writes the same; and back by finetune."""

import json
import subprocess
import sys

import pytest

MODELS = {
    "decoder": {"bias": False, "norm": {"kind": "rms"}, "feed_forward": {"kind": "swiglu"}},
    "encoder": {
        "position": {"kind": "learned"},
        "norm": {"placement": "post", "embedding": True},
        "head": {"transform": True, "bias": True},
        "token_types": 2,
    },
    "encoder_decoder": {
        "bias": False,
        "norm": {"kind": "rms"},
        "position": {"kind": "t5"},
        "attention": {"scale": 1.0},
        "feed_forward": {"kind": "relu"},
    },
}
AUTO = {
    "decoder": ("llama", "AutoModelForCausalLM"),
    "encoder": ("bert", "AutoModelForMaskedLM"),
    "encoder_decoder": ("t5", "AutoModelForSeq2SeqLM"),
}
THERE = """
import json, sys
sys.path = [entry for entry in sys.path if "platform" not in entry]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
try:
    import triune
except ImportError:
    pass
else:
    raise SystemExit("triune is on the path")
import torch, transformers
place, auto, text = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(place)
model = getattr(transformers, auto).from_pretrained(place)
given = tokenizer(text, return_tensors="pt")
given.pop("token_type_ids", None)
if "Masked" in auto:
    scores = model(**given).logits
    written = scores.argmax(-1)[given["input_ids"] == tokenizer.mask_token_id].tolist()
else:
    written = model.generate(**given, max_new_tokens=12, do_sample=False)[0].tolist()
print(json.dumps({"ids": given["input_ids"][0].tolist(), "written": written}))
"""


def here(place, family, text):
    """What triune makes of the same text."""
    from triune.data.tokenizers import Tokenizer
    from triune.inference import fill, generate
    from triune.training.samples import with_special
    from triune.training.weights import load_model

    model, _ = load_model(place)
    words = Tokenizer.load(place)
    known, ids = words.vocabulary, with_special(words, text)
    if family == "encoder":
        row = [known.opening, *ids, known.closing]
        blanks = fill(model, [row], mask=known.mask, pad=known.pad)[0]
        return {"ids": row, "written": [blank.ids[0] for blank in blanks]}
    if family == "encoder_decoder":
        row, prompt = [*ids, known.closing], [known.decoder_start]
        new = generate(model, [prompt], sources=[row], max_new_tokens=12, eos=known.closing)[0]
    else:
        row = prompt = [known.opening, *ids]
        new = generate(model, [prompt], max_new_tokens=12, eos=known.closing)[0]
    return {"ids": row, "written": prompt + new}


@pytest.mark.parametrize("family", MODELS)
def test_a_trained_model_opens_without_triune_and_writes_the_same(family, write_config, triune, tmp_path):
    changes = {"model": MODELS[family]}
    if family == "encoder_decoder":
        changes["model"] = MODELS[family] | {"head": {"scale": 32**-0.5}}
    config = write_config(family, changes | {"run": {"tokens": 40 * 128, "validate_every": "40 steps"}})
    done = triune("pretrain", config)
    assert done.returncode == 0, done.stderr
    run, out = tmp_path / "runs" / "pretrain" / "run", tmp_path / "exported"
    done = triune("export", run, out)
    assert done.returncode == 0, done.stderr
    architecture, auto = AUTO[family]
    assert f"{architecture} from" in done.stdout
    assert json.loads((out / "parity.json").read_text())["architecture"] == architecture
    text = {"encoder": "the <mask> sees a <mask> house", "encoder_decoder": "the cat <extra_id_0> a house"}
    asked = text.get(family, "the cat sees")
    (tmp_path / "there.py").write_text(THERE)
    there = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "there.py"), str(out), auto, asked],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout.splitlines()[-1]) == here(run / "model", family, asked)
    if family != "decoder":  # one family shows the way back; each costs a run
        return
    tokenizer = f"data.tokenizer={{kind: pretrained, path: {out}}}"
    done = triune("finetune", config, f"init.from={out}", tokenizer, "--name=back", "run.tokens=1280")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "finetune" / "back" / "model" / "model.safetensors").exists()
