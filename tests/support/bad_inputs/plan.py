"""Bad inputs of `lcjax plan`."""

from tests.support.bad_inputs.common import Case, lengths, models, outputs, words

_ALL = "--model smollm2-135m --max-seq-length 1024"

CASES: list[Case] = [
    *models("--model {} --max-seq-length 64", weights=False, tokenizer=False),
    *lengths("--model smollm2-135m --max-seq-length {}", 2),
    *outputs(f"{_ALL} --json {{}}", "--json"),
    *outputs(f"{_ALL} --plot {{}}", "--plot"),
    *words(_ALL, "--lora-r", "--vram-gb", "--host-gb", "--gpus", "--hosts", "--loss-chunk"),
    (f"{_ALL} --plot lengths", "--plot lengths"),
    (f"{_ALL} --plot lengths.doc", "--plot lengths.doc"),
    ("--model llama-3.1-9b", "--model llama-3.1-9b"),
    (f"{_ALL} --gpu h100", "--gpu h100"),
    (f"{_ALL} --gpu ''", "--gpu is empty"),
    (f"{_ALL} --vram-gb 0", "--vram-gb 0"),
    (f"{_ALL} --vram-gb nan", "--vram-gb nan"),
    (f"{_ALL} --host-gb -1", "--host-gb -1"),
    (f"{_ALL} --host-gb nan", "--host-gb nan"),
    (f"{_ALL} --lora-r -1", "--lora-r -1"),
    (f"{_ALL} --quantize int3", "--quantize int3"),
    (f"{_ALL} --use-gradient-checkpointing some", "--use-gradient-checkpointing some"),
    (f"{_ALL} --attention flash", "--attention flash"),
    (f"{_ALL} --optimizer-memory disk", "--optimizer-memory disk"),
    (f"{_ALL} --memory everything", "--memory everything"),
    (f"{_ALL} --gpus 0", "--gpus 0"),
    (f"{_ALL} --hosts 0", "--hosts 0"),
    (f"{_ALL} --find-max", "--find-max"),
    (f"{_ALL} --table", "--table"),
    ("--model smollm2-135m --table --find-max", "--table"),
    ("--model smollm2-135m --table --vram-gb 12", "--table"),
    ("", "--model"),
    (f"{_ALL} --no-such-flag", "--no-such-flag"),
    (f"{_ALL} extra", "extra"),
]
